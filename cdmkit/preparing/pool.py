"""Images in the order they are asked for, made by several processes, with few of them waiting."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from cdmkit.kinds import Original
from cdmkit.preparing.images import Maker, Outcome, Refused

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end the work as Ctrl-C does: of schedulers, of a terminal that is closed."""

CHUNK = 32
"""Images that are handed to a worker at once: enough to make the hand-over cheap, few enough to wait in memory."""

_AHEAD = 3
"""Chunks per worker that are under way or wait for their turn."""

_MOST_DEATHS = 5
"""Images that may end a worker: more mean that something else is wrong."""

_DEADLY = Refused("its decoder died")

_GRACE = 5.0
"""Seconds that a worker may take to end its image when it is to stop."""

_maker: Maker
"""A worker's own."""

_stopping = False
"""Whether a worker is to stop."""


def usable_cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerDied(Exception):
    """Workers die again and again, the last one at the image of this name."""


@contextlib.contextmanager
def outcomes(maker: Maker, originals: Iterable[Original], workers: int) -> Iterator[Iterator[Outcome]]:
    """What becomes of each image, in the order of `originals`: made in `workers` processes, or in this one where they are 0.

    At most `_AHEAD * workers` chunks are held. The processes end with the block, at once where it is left by an exception, and when this
    process dies. An image at which a worker dies even alone is refused. Raises WorkerDied after more than `_MOST_DEATHS` of those.
    """
    chunks = _chunks(originals)
    if not workers:
        yield itertools.chain.from_iterable(map(maker.make_all, chunks))
        return
    pool = _Pool(maker, workers)
    try:
        yield itertools.chain.from_iterable(pool.in_order(chunks))
    finally:
        pool.stop()


def _chunks(originals: Iterable[Original]) -> Iterator[list[Original]]:
    each = iter(originals)
    while chunk := list(itertools.islice(each, CHUNK)):
        yield chunk


class _Task:
    """A chunk that is under way."""

    def __init__(self, chunk: list[Original], future: Future[list[Outcome]] | None) -> None:
        self.chunk = chunk
        self.future = future
        """None where it could not be handed over, for the workers were dead."""

    @property
    def lost(self) -> bool:
        """Whether the workers, which are gone now, were so before it was done."""
        if self.future is None or self.future.cancelled() or not self.future.done():
            return True
        return isinstance(self.future.exception(), BrokenProcessPool)


class _Pool:
    """Worker processes, which are replaced when one of them dies."""

    def __init__(self, maker: Maker, workers: int) -> None:
        self._maker = maker
        self._workers = workers
        self._context = _context(maker)
        self._deaths = 0
        self._start(workers)

    def _start(self, workers: int) -> None:
        self._theirs, self._ours = self._context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(workers, self._context, _start_worker, (self._maker, self._theirs))

    def stop(self) -> None:
        """End all processes."""
        self._ours.close()  # at this sign, workers end after their image
        self._executor.shutdown(cancel_futures=True)
        self._theirs.close()

    def in_order(self, chunks: Iterator[list[Original]]) -> Iterator[list[Outcome]]:
        """The results of chunks in their order, with a few of them under way."""
        waiting: deque[_Task] = deque()
        for chunk in chunks:
            waiting.append(self._handed(chunk))
            if len(waiting) == _AHEAD * self._workers:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def _handed(self, chunk: list[Original]) -> _Task:
        try:
            with undisturbed():  # it may start a worker
                return _Task(chunk, self._executor.submit(_make, chunk))
        except BrokenProcessPool:
            return _Task(chunk, None)

    def _first(self, waiting: deque[_Task]) -> list[Outcome]:
        """The result of the oldest chunk. Where workers died, it is made image by image, and what else was lost is handed over again."""
        task = waiting.popleft()
        if task.future is not None:
            with contextlib.suppress(BrokenProcessPool, CancelledError):
                return task.future.result()
        self.stop()
        made = self._one_by_one(task.chunk)
        self._start(self._workers)
        for number, each in enumerate(waiting):
            if each.lost:
                waiting[number] = self._handed(each.chunk)
        return made

    def _one_by_one(self, chunk: list[Original]) -> list[Outcome]:
        """Made by a single worker, alone in memory: who dies now dies of the image."""
        made: list[Outcome] = []
        self._start(1)
        for original in chunk:
            task = self._handed([original])
            try:
                made += task.future.result() if task.future is not None else [_DEADLY]
            except BrokenProcessPool:
                made.append(_DEADLY)
            if made[-1] is _DEADLY:
                self.stop()
                self._deaths += 1
                if self._deaths > _MOST_DEATHS:
                    raise WorkerDied(original.name)
                self._start(1)
        self.stop()
        return made


def _context(maker: Maker) -> BaseContext:
    """How processes are started: from a small server that has imported everything once, where there is such a thing.

    Not by copying this process, whose threads and open files would be copied in whatever state they are in.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(maker.preparer).__module__])
    resource_tracker.ensure_running()
    # The server and all it starts inherit that Ctrl-C is no business of theirs, before they can say so themselves.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ready = context.Process(target=_nothing)  # the server answers when it has imported all, which takes seconds
    ready.start()
    ready.join()
    return context


def _nothing() -> None:
    """A process that ends at once."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C, SIGTERM and SIGHUP to the end of the block: a worker that is half started could not be ended, and would complain."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    numbers = [number for number in (signal.SIGINT, *ENDING) if signal.getsignal(number) != signal.SIG_IGN]  # as nohup wants it
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _start_worker(maker: Maker, sign: Connection) -> None:
    """What a worker does first. It ends after its image when `sign` is closed, and when the process that asked for it is gone, even by
    SIGKILL.
    """
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    ends: list[Connection | int] = [sign] if parent is None else [sign, parent.sentinel]

    def watch() -> None:
        global _stopping
        connection.wait(ends)
        _stopping = True
        if parent is not None:  # to end while a result is being sent would leave the other process waiting for the rest of it
            connection.wait([parent.sentinel], _GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _maker = maker


def _make(originals: list[Original]) -> list[Outcome]:
    made: list[Outcome] = []
    for original in originals:
        if _stopping:  # nobody asks for it any more
            break
        made += _maker.make_all([original])
    return made
