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
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from cdmkit.kinds import Original
from cdmkit.preparing.images import Maker, Outcome

CHUNK = 32
"""Images that are handed to a worker at once: enough to make the hand-over cheap, few enough to wait in memory."""

_AHEAD = 3
"""Chunks per worker that are under way or wait for their turn."""

_maker: Maker
"""A worker's own."""


def usable_cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def outcomes(maker: Maker, originals: Iterable[Original], workers: int) -> Iterator[Iterator[Outcome]]:
    """What becomes of each image, in the order of `originals`: made in `workers` processes, or in this one where they are 0.

    At most `_AHEAD * workers` chunks are held. The processes end with the block, at once where it is left by an exception, and when this
    process dies. Raises BrokenProcessPool where one of them dies.
    """
    chunks = _chunks(originals)
    if not workers:
        yield itertools.chain.from_iterable(map(maker.make_all, chunks))
        return
    context = _context(maker)
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (maker, theirs))
    try:
        yield itertools.chain.from_iterable(_in_order(pool, chunks, _AHEAD * workers))
        pool.shutdown()
    finally:
        ours.close()  # at this sign, workers end at once
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _chunks(originals: Iterable[Original]) -> Iterator[list[Original]]:
    each = iter(originals)
    while chunk := list(itertools.islice(each, CHUNK)):
        yield chunk


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator[list[Original]], most: int) -> Iterator[list[Outcome]]:
    """The results of chunks in their order, with up to `most` of them under way."""
    waiting: deque[Future[list[Outcome]]] = deque()
    for chunk in chunks:
        with undisturbed():  # it may start a worker
            waiting.append(pool.submit(_make, chunk))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


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
    """Put off Ctrl-C and SIGTERM to the end of the block: a worker that is half started could not be ended, and would complain."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _start_worker(maker: Maker, sign: Connection) -> None:
    """What a worker does first. It ends when `sign` is closed, and when the process that asked for it is gone, even by SIGKILL."""
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    ends: list[Connection | int] = [sign] if parent is None else [sign, parent.sentinel]

    def watch() -> None:
        connection.wait(ends)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _maker = maker


def _make(originals: list[Original]) -> list[Outcome]:
    return _maker.make_all(originals)
