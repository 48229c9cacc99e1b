"""Training as one of several processes: what is done when another is gone, or hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cdmkit.errors import CheckpointError, PeerLost
from cdmkit.kinds import Session

_COLLECTIVES = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer")
"""What errors of torch's collectives speak of, where they have no class of their own."""


@contextlib.contextmanager
def losing_peers(session: Session) -> Iterator[None]:
    """Raise PeerLost where a collective inside fails since another process is gone."""
    try:
        yield
    except RuntimeError as error:
        of_peers = isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in _COLLECTIVES)
        if session.world == 1 or not of_peers:
            raise
        raise PeerLost(
            f"process {session.rank} of {session.world} ends since another one is gone, whose own message tells why. "
            "All that is saved stands: go on with --resume."
        ) from error


@contextlib.contextmanager
def watchdog(session: Session) -> Iterator[Callable[[], None]]:
    """End this process, after printing where each of its threads stands, once what is given was not called for `session.patience` seconds.

    A process that was halted (a machine that hangs, SIGSTOP) makes all others wait in a collective for ever: they find out so. The clock
    runs in a thread of the interpreter that needs no lock, so that it is not halted by what hangs. Alone, nobody waits for anyone.
    """
    if session.world == 1:
        yield lambda: None
        return
    wound = -1.0

    def alive() -> None:
        nonlocal wound
        now = time.monotonic()
        if now - wound >= min(1.0, session.patience / 10):
            wound = now
            faulthandler.dump_traceback_later(session.patience, exit=True)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()


def wait_for_all(session: Session) -> None:
    """Go on when all processes are here."""
    float(session.total(torch.zeros((), device=session.device)))


def check_equal_steps(session: Session, step: int) -> None:
    """Raise CheckpointError where the processes begin at different steps, as they do where the run's folder is not the same for all."""
    steps = session.gather(torch.tensor([step], device=session.device)).tolist()
    if len(set(steps)) > 1:
        raise CheckpointError(f"the processes find checkpoints of steps {steps}: the run must be in a folder that all machines share")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be split among the processes (torch's DTensor); then all of them must ask for it."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def gathered(tensors: Mapping[str, Tensor], session: Session) -> dict[str, Tensor]:
    """Each tensor whole, in the first process; those that are split go to host memory, one after another. All processes call this."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if session.rank == 0:
            found[name] = tensor if full is tensor else full.cpu()
    return found


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split among the processes as `like` is, where it is: what this one holds of it."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # half a second to import, for those who split

    split: Any = like
    return distribute_tensor(tensor.to(split.device), split.device_mesh, split.placements, src_data_rank=None)
