"""The processes that work on one run together, as `torchrun` or `cdmkit run --devices` starts them: who is first, and what it tells.

What passes between them here are short texts over torch's key-value store; tensors go through a backend's `Session`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

from cdmkit.errors import FirstFailed, PeerLost, SetupError

PATIENCE = timedelta(days=1)
"""How long a collective waits for a process that is there but does nothing: for longer than a backend's `patience`, which ends the wait."""

_LOOK = timedelta(seconds=30)
"""How often one that waits for the first looks whether the store is still there."""

T = TypeVar("T")


class Ranks:
    """This process among those of its run; alone by default."""

    rank = 0
    world = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def first_then_all(self, work: Callable[[], T]) -> T:
        """Do some work, the others after the first: what it leaves on the disk need not be made by each."""
        return work()

    def told(self, work: Callable[[], str]) -> str:
        """What `work` gives in the first process, told to all. Raises FirstFailed in the others where it fails there."""
        return work()


class Joined(Ranks):
    """One of several processes. Each calls the methods in the same order as all others.

    Raises SetupError where the environment does not tell where the first one is, PeerLost where it is not there.
    """

    def __init__(self, rank: int, world: int) -> None:
        from torch.distributed import DistError
        from torch.distributed import distributed_c10d as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.world = rank, world
        try:
            store, *_ = next(rendezvous("env://"))
        except ValueError as error:
            raise SetupError(
                f"WORLD_SIZE = {world}, but {error}: start several processes by `cdmkit run --devices` or torchrun, one without WORLD_SIZE"
            ) from error
        except DistError as error:
            raise PeerLost(f"process {rank} of {world} cannot join the others: {error}") from error
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # a launcher's store may outlive the processes that wrote to it
        self._store = dist.PrefixStore(f"cdmkit-{again}", store)
        self._calls = 0
        dist.init_process_group(store=dist.PrefixStore(f"group-{again}", store), rank=rank, world_size=world, timeout=PATIENCE)

    def first_then_all(self, work: Callable[[], T]) -> T:
        """The first process works, then the others do."""
        if self.first:
            with self._telling() as tell:
                found = work()
                tell("")
            return found
        self._hear()
        return work()

    def told(self, work: Callable[[], str]) -> str:
        """The first process works, the others are told the result."""
        if not self.first:
            return self._hear()
        with self._telling() as tell:
            found = work()
            tell(found)
        return found

    @contextlib.contextmanager
    def _telling(self) -> Iterator[Callable[[str], None]]:
        """Gives what tells the others of this call; they are told of a failure, too."""
        key = self._key()
        try:
            yield lambda text: self._store.set(key, "ok" + text)
        except BaseException:
            self._store.set(key, "no")
            raise

    def _hear(self) -> str:
        """What the first process tells in this call."""
        from torch.distributed import DistNetworkError, DistStoreError

        key = self._key()
        while True:
            try:
                self._store.wait([key], _LOOK)
                text = self._store.get(key).decode()
            except DistNetworkError as error:
                raise PeerLost(f"process {self.rank} of {self.world} lost the first one: {error}") from error
            except DistStoreError:  # it still works
                continue
            if text == "no":
                raise FirstFailed(f"process {self.rank} of {self.world} ends since the first one failed: its message tells why")
            return text.removeprefix("ok")

    def _key(self) -> str:
        self._calls += 1
        return str(self._calls)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes, where torchrun's variables of the environment tell of any, and leave them at the end."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks()
        return
    ranks = Joined(rank, world)
    yield ranks
    import torch.distributed as dist

    dist.destroy_process_group()  # not after errors: it could wait for processes that are gone


def launch() -> tuple[str, bool]:
    """The name that the launcher gave this start, empty without one; and whether its processes were started again after a fault.

    Where torchrun was given no name, this is one of its process on this machine: the first process of all is to ask.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if name == "none":  # torchrun's, where nobody named one: the same in all its processes, which it outlives, and in no other start
        name = f"{socket.gethostname()}:{os.getppid()}"
    return name, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
