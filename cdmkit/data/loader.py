"""An endless stream of batches, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from cdmkit.data.skips import Skips
from cdmkit.kinds import Batch, Batches, Skip

Read = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(indices int64 [B]) -> (images uint8 [B, 3, S, S], labels int64 [B]). Called from several threads at once."""

Order = Callable[[Tensor], Tensor]
"""(positions int64 [B]) -> indices int64 [B]. Called from one thread, with rising positions."""

P = ParamSpec("P")
T = TypeVar("T")

_PART = 64
"""Images per task of a thread: small, so that one batch keeps all threads busy and closing never waits long."""


_PATIENCE = 5.0
"""Seconds that closing waits for reads that are under way."""

THREADS = "cdmkit-data"
"""How the names of reading threads begin."""


class Loader(Batches):
    """This rank's batches from global `position` on, as `Source.open` promises them.

    `workers` threads (decoding lets go of the interpreter lock) keep at least two batches ready; with 0, a batch is read when it is asked
    for. Neither their number nor what they had read ahead changes what comes: opened at position p, the stream is what an uninterrupted one
    gives from p on. An error of `read` is raised by `next` where the batch would have come, and again by every later `next`.

    Each reader computes with one torch thread, since teams of their own would take the cores from training. torch counts that for every
    thread that is started later in the process, too; threads that have computed before keep their number.
    """

    def __init__(
        self,
        read: Read,
        order: Order,
        *,
        batch: int,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
        workers: int = 2,
        skips: Skips | None = None,
        where: Callable[[int], str] | None = None,
    ) -> None:
        self._read = read
        self._order = order
        self._left_out = skips
        self._where = where
        self._steps = torch.arange(batch) * world + rank
        self._stride = batch * world
        self._position = position
        parts = -(-batch // _PART)
        self._ahead = max(2, -(-2 * workers // parts)) if workers else 1
        self._pool: Executor = _threads(workers) if workers else _Here()
        self._coming: deque[tuple[Tensor, list[Future[tuple[Tensor, Tensor]]]]] = deque()

    def __next__(self) -> Batch:
        self._fill()
        positions, parts = self._coming[0]
        images, labels = zip(*(part.result() for part in parts), strict=True)
        self._coming.popleft()
        if self._ahead > 1:
            self._request()
        return Batch(torch.cat(images), torch.cat(labels), positions)

    def where(self, position: int) -> str:
        """Position, shard and key."""
        where = super().where(position)
        return f"{where}, {self._where(int(self._order(torch.tensor([position]))))}" if self._where else where

    def ready(self, seconds: float) -> bool:
        """Wait for the next batch, no longer than this; whether it is there."""
        self._fill()
        parts = self._coming[0][1]
        return all(part.done() for part in parts) or not wait(parts, seconds).not_done

    @property
    def skipped(self) -> int:
        """How many samples are left out."""
        return self._left_out.samples if self._left_out else 0

    def skips(self) -> list[Skip]:
        """What was left out since this was last called."""
        return self._left_out.take() if self._left_out else []

    def close(self) -> None:
        """End the threads, without waiting for batches that they have not begun, nor long for a server that has fallen silent."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        under_way = [part for _, parts in self._coming for part in parts if not part.cancelled()]
        if not wait(under_way, _PATIENCE).not_done:
            self._pool.shutdown()

    def _fill(self) -> None:
        while len(self._coming) < self._ahead:
            self._request()

    def _request(self) -> None:
        """Have the threads read one batch more."""
        positions = self._position + self._steps
        self._position += self._stride
        parts = torch.split(self._order(positions), _PART)
        self._coming.append((positions, [self._pool.submit(self._read, part) for part in parts]))


def _threads(workers: int) -> Executor:
    torch.get_num_threads()  # settles the caller's number before a reader sets its own
    return ThreadPoolExecutor(workers, THREADS, initializer=torch.set_num_threads, initargs=(1,))


class _Here(Executor):
    """Does what it is given at once, in the thread that gives it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future that is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
