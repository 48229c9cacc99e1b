"""One command on several devices: a process for each, told of the others as `torchrun` tells it."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence

import attrs

from cdmkit.errors import UsageError
from cdmkit.launching.group import FINAL, Group, most_telling, relaying, say, threads, words

GRACE = 30.0
"""Seconds that processes have to end by themselves after one of them has failed: what they wait for together fails, too."""


@attrs.frozen
class Node:
    """This machine among those that share the work."""

    number: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    """Where the first process of all waits for the others."""
    port: int | None = None
    """By default a free one, anew at each start."""

    @classmethod
    def of_slurm(cls, count: int) -> Node:
        """The node of a Slurm job that `srun` started this process on. Raises UsageError where the environment does not tell."""
        try:
            given = (int(os.environ["SLURM_NODEID"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"--nodes is for jobs of Slurm, as `cdmkit launch` makes them: srun sets SLURM_NODEID, the job's script MASTER_ADDR and "
                f"MASTER_PORT, and here this is wrong: {error}. Without Slurm, use torchrun."
            ) from error
        number, address, port = given
        return cls(number, count, address, port)


def run_on_devices(command: Sequence[str], devices: int, *, restarts: int = 0, node: Node, grace: float = GRACE) -> int:
    """Run `command` as a process for each of this machine's `devices`. Returns the exit code that tells most.

    Where one ends other than well, the others have `grace` seconds, then they are killed. Where it may help all are started again, at most
    `restarts` times, and told by TORCHELASTIC_RESTART_COUNT how often.
    """
    name = uuid.uuid4().hex if node.port is None else f"{node.address}:{node.port}"
    with relaying() as relay:
        for start in range(restarts + 1):
            common = _environment(node, devices) | {"TORCHELASTIC_RUN_ID": name, "TORCHELASTIC_RESTART_COUNT": str(start)}
            with Group() as group:
                for local in range(devices):
                    rank = node.number * devices + local
                    group.start(f"rank {rank}", command, {**common, "RANK": str(rank), "LOCAL_RANK": str(local)}, speaks=rank == 0)
                relay.begin(group)
                group.wait(until_failure=True)
                group.wait(grace)
                if group.running:
                    say(f"{', '.join(group.running)}: killed, since {grace:g} seconds after a failure they had not ended")
            code = most_telling(group.ended)
            if code == 0 or code in FINAL or relay.asked:
                break
            what = f"all start again ({start + 1} of {restarts} restarts)" if start < restarts else "they are not started again"
            say(f"{words(group.ended)}: {what}")
    return code


def _environment(node: Node, devices: int) -> dict[str, str]:
    """What all processes of this machine are told of each other, and their share of its cores."""
    return {
        "WORLD_SIZE": str(node.count * devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(free_port() if node.port is None else node.port),
        "OMP_NUM_THREADS": threads(devices),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
