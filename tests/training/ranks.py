"""Processes that train a stage together: python -m tests.training.ranks FOLDER GOES

GOES is a JSON list; each go is a table: "world", "folder" (within FOLDER), and perhaps "train" (options of it), "stage" ("base" or "sr"),
"parallel", "patience", "density", "averages" (true: one by a power, with snapshots), "classes", "shows" (true: the average is called at
every step, as samples do), "bad" (calls at which the network of the last process gives NaN), "signal": [rank, step, name], which that
process sends itself after that step, or for step 0 when it passes over a damaged checkpoint. Prints, for every go, how each process ended
(as `subprocess` has it) and what it said, as JSON.
Torch is imported once, the processes are forked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch._dynamo
from torch import nn

from cdmkit.builtin.averages import Power
from cdmkit.builtin.backends import Device, Parallel, Precision, Torch
from cdmkit.builtin.densities import LossAware, Uniform
from cdmkit.cascade.sampling import Tick
from cdmkit.diffusion import Condition
from cdmkit.errors import CdmkitError
from cdmkit.events import Event, Progress, Warned
from cdmkit.launching.devices import free_port
from cdmkit.ranks import joined
from cdmkit.training import stop_on_signals
from tests.training.components import CLASSES, Tiny, make_sr_stage, make_stage, run


def train(folder: Path, go: dict[str, Any]) -> None:
    """Take part in one go."""
    rank, last = int(os.environ["RANK"]), go["world"] - 1
    backend = Torch(
        device=Device.CPU, precision=Precision.FP32, parallel=Parallel(go.get("parallel", "ddp")), patience=go.get("patience", 100.0)
    )
    bad = tuple(go.get("bad", ())) if rank == last else ()
    density = LossAware(history=1) if go.get("density") == "loss-aware" else Uniform()
    averages = {"averages": (Power(sigma_rel=0.1),), "snapshot_every": 2} if go.get("averages") else {}
    shown = {"sample_every": 1} if go.get("shows") else {}
    options = {"log_every": 1, **averages, **shown, **go.get("train", {})}
    make, parent = (make_sr_stage, make_stage(resolution=4)) if go.get("stage") == "sr" else (make_stage, None)
    stage = make(options, backend=backend, backbone=Tiny(nan_calls=bad, dropout=go.get("dropout", 0.1)), density=density)
    who, step, name = go.get("signal", (-1, 0, "SIGTERM"))

    def hit(event: Event) -> None:
        begins = isinstance(event, Warned) and step == 0  # of a damaged checkpoint
        if rank == who and (begins or (isinstance(event, Progress) and event.step == step)):
            os.kill(os.getpid(), signal.Signals[name])

    with joined() as ranks, stop_on_signals() as stop:
        if ranks.world > 1:
            torch.distributed.barrier()  # the first one holds what others find each other by: were it gone at once, they would miss it
        run(stage, folder / go["folder"], parent=parent, emit=hit, stop=stop, sample=show, classes=go.get("classes", CLASSES))


@torch.inference_mode()
def show(network: nn.Module, _step: int, _tick: Tick) -> None:
    """Call a network."""
    network(torch.zeros(2, 3, 8, 8), torch.ones(2), Condition(torch.zeros(2, dtype=torch.int64)))


def in_child(folder: Path, go: dict[str, Any], rank: int, port: int, out: int) -> None:
    """Be one of the processes; does not return."""
    os.dup2(out, 2)
    world = str(go["world"])
    os.environ.update(RANK=str(rank), WORLD_SIZE=world, LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    code = 1
    try:
        train(folder, go)
        code = 0
    except CdmkitError as error:
        sys.stderr.write(str(error))
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def together(folder: Path, go: dict[str, Any]) -> list[tuple[int, str]]:
    """All processes of a go: how each ended, and what it said."""
    port, children = free_port(), []
    for rank in range(go["world"]):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            in_child(folder, go, rank, port, writing)
        os.close(writing)
        children.append((child, reading))
    stopped = {child for child, _ in children} if go.get("signal", ("", 0, ""))[2] == "SIGSTOP" else set()
    ends = {}
    for number in [*range(go["world"] - 1, -1, -1)] if stopped else range(go["world"]):
        child, reading = children[number]
        if stopped and number == go["signal"][0]:
            continue
        with os.fdopen(reading, errors="replace") as said:
            text = said.read()
        ends[number] = (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text)
    if stopped:
        child, _ = children[go["signal"][0]]
        os.kill(child, signal.SIGKILL)
        ends[go["signal"][0]] = (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "")
    return [ends[rank] for rank in sorted(ends)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([together(Path(sys.argv[1]), go) for go in json.loads(sys.argv[2])]))
