"""What is measured with: a stopwatch that waits for the device, its memory, and the speed of its products."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cdmkit.kinds import Session

WARM_UP = 3
"""Steps before the clock counts: compilers, caches and allocators settle in them."""

WINDOWS = 5
"""Parts of a measurement that are timed each by itself; three where steps are slow."""

_SIZES = (1024, 2048, 4096, 8192)
_PATIENCE = 0.3
"""Seconds for the products of one size; no larger ones are tried where a single one takes a third of it."""

_PROCESS = Path("/proc/self")


class _Enough(Exception):
    """The time is up."""


class _Stopwatch:
    """Told of the end of every step, it times windows of several steps; only at their ends is the device waited for."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.windows: list[float] = []
        """Seconds per step in each."""
        self._device = device
        self._seconds = seconds
        self._steps = self._left = WARM_UP - 1
        """Steps of the present window, and how many of them are to come."""
        self._since = self._start = 0.0
        """When the present window began, and the first one that counts; 0 before."""

    def __call__(self) -> None:
        """A step ends. Raises _Enough where no more are needed."""
        self._left -= 1
        if self._left > 0:
            return
        float(torch.zeros((), device=self._device))  # waits for all before it
        now = time.perf_counter()
        if not self._since:  # the steps of the warm-up but one are over; the last one tells how many make a window
            self._steps = 1
        elif not self._start:
            self._start = now
            self._steps = max(1, int(self._seconds / WINDOWS / (now - self._since)))
        else:
            self.windows.append((now - self._since) / self._steps)
            if len(self.windows) >= 3 and now - self._start >= self._seconds:
                raise _Enough
        self._left, self._since = self._steps, now


def seconds_per_step(
    work: Callable[[Callable[[], None]], None],
    device: torch.device,
    seconds: float,
    choose: Callable[[list[float]], float] = statistics.median,
) -> float:
    """The median time of a step. `work` does one or more, calls what it is given at the end of each, and is called until `seconds` are over
    (longer where three steps take longer). choose: what is taken instead of the median.
    """
    watch = _Stopwatch(device, seconds)
    try:
        while True:
            work(watch)
    except _Enough:
        return choose(watch.windows)


class PeakMemory:
    """The most memory that was in use since this was made, beyond what was then: of the device's allocator on CUDA, else of the process."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif device.type == "cpu":
            _forget_peak()
            self._before = _resident("VmRSS") or 0

    def read(self) -> int | None:
        """Bytes; None where nobody counts them."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        peak = _resident("VmHWM") if self._device.type == "cpu" else None
        return None if peak is None else peak - self._before


def _forget_peak() -> None:
    """Give back what is free, where the C library can, and let Linux count the peak of resident memory from here (proc(5), clear_refs)."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return


def _resident(what: str) -> int | None:
    """Bytes of resident memory of this process, now (VmRSS) or at most (VmHWM), where Linux tells."""
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def precision(session: Session) -> torch.dtype:
    """The dtype of a network's products."""
    kind = session.device.type
    with session.autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def matmul_gflops(session: Session) -> float:
    """10^9 operations per second of the fastest product of two square matrices, in the precision of networks."""
    best = 0.0
    for size in _SIZES:
        left, right = torch.randn(2, size, size, device=session.device, dtype=precision(session))

        def work(lap: Callable[[], None], left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            torch.mm(left, right)
            lap()

        took = seconds_per_step(work, session.device, _PATIENCE, min)
        best = max(best, 2 * size**3 / took / 1e9)
        if took > _PATIENCE / 3:
            break
    return best


def name(device: torch.device) -> str:
    """What people call a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu (threads: {torch.get_num_threads()})" if device.type == "cpu" else str(device)
