"""An endless stream of batches, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from cdmkit.data.order import Order
from cdmkit.kinds import Batch, Batches

Read = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(indices int64 [B]) -> (images uint8 [B, 3, S, S], labels int64 [B]). Called from several threads at once."""

_PART = 64
"""Images per task of a thread: small, so that one batch keeps all threads busy and closing never waits long."""


class Loader(Batches):
    """This rank's batches from global `position` on, as `Source.open` promises them.

    `workers` threads (decoding lets go of the interpreter lock) keep at least two batches ready. Neither their number nor what they had
    read ahead changes what comes: opened at position p, the stream is what an uninterrupted one gives from p on. An error of `read`
    is raised by `next` where the batch would have come, and again by every later `next`.

    Each reader computes with one torch thread, since teams of their own would take the cores from training. torch counts that for every
    thread that is started later in the process, too; threads that have computed before keep their number.
    """

    def __init__(
        self, read: Read, count: int, *, batch: int, rank: int = 0, world: int = 1, seed: int = 0, position: int = 0, workers: int = 2
    ) -> None:
        self._read = read
        self._order = Order(count, seed)
        self._steps = torch.arange(batch) * world + rank
        self._stride = batch * world
        self._position = position
        parts = -(-batch // _PART)
        self._ahead = max(2, -(-2 * workers // parts))
        torch.get_num_threads()  # settles the caller's number before a reader sets its own
        self._pool = ThreadPoolExecutor(workers, "cdmkit-data", initializer=torch.set_num_threads, initargs=(1,))
        self._coming: deque[tuple[Tensor, list[Future[tuple[Tensor, Tensor]]]]] = deque()

    def __next__(self) -> Batch:
        while len(self._coming) < self._ahead:
            self._request()
        positions, parts = self._coming[0]
        images, labels = zip(*(part.result() for part in parts), strict=True)
        self._coming.popleft()
        self._request()
        return Batch(torch.cat(images), torch.cat(labels), positions)

    def close(self) -> None:
        """End the threads, without waiting for batches that they have not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _request(self) -> None:
        """Have the threads read one batch more."""
        positions = self._position + self._steps
        self._position += self._stride
        parts = torch.split(self._order(positions), _PART)
        self._coming.append((positions, [self._pool.submit(self._read, part) for part in parts]))
