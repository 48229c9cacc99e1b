"""What saving and resuming cost: `python benchmarks/checkpoint.py [--megaparameters N] [--folder FOLDER] [--json]`.

A stage of N million parameters (100 by default), most of them in wide linear layers, so that steps between saves are short. Printed are
the seconds that training waits for a save that it sees to its end and for one that a thread writes beside it, and the largest memory of a
training that is not disturbed and of one that is resumed from a checkpoint. Each is measured in a process of its own, with its files in
FOLDER: a checkpoint takes 16 bytes per parameter, and there are up to three at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the process that starts the others stays small: what it has in memory would count as theirs
    from cdmkit.cascade import Stage

ROUNDS = 5
WIDTH = 2048
TARGET_STALL, TARGET_MEMORY = 0.15, 1.05


def make_stage(megaparameters: int, steps: int) -> Stage:
    """The stage, with a checkpoint at each step."""
    import torch
    from torch import Tensor, nn

    from cdmkit.builtin.backends import Device, Precision, Torch
    from cdmkit.builtin.densities import Uniform
    from cdmkit.builtin.losses import Simple
    from cdmkit.builtin.optimizers import Adam
    from cdmkit.builtin.samplers import Ddim
    from cdmkit.builtin.schedules import Cosine
    from cdmkit.builtin.thresholds import Static
    from cdmkit.cascade import Stage, Training
    from cdmkit.component import component, option
    from cdmkit.diffusion import Condition
    from cdmkit.kinds import Backbone, NetworkSpec

    class Network(nn.Module):
        def __init__(self, pixels: int, layers: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(pixels, WIDTH), *[nn.Linear(WIDTH, WIDTH) for _ in range(layers)], nn.Linear(WIDTH, pixels)
            )

        def forward(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
            made: Tensor = self.layers(x_t.flatten(1))
            return made.view_as(x_t)

    @component("wide")
    class Wide(Backbone):
        layers: int = option(help="linear layers between the first and the last")

        def build(self, spec: NetworkSpec) -> nn.Module:
            return Network(3 * spec.resolution**2, self.layers)

    torch.set_num_threads(1)
    return Stage(
        name="base",
        resolution=8,
        schedule=Cosine(timesteps=100),
        density=Uniform(),
        loss=Simple(),
        backbone=Wide(layers=round(megaparameters * 1e6 / WIDTH**2)),
        sampler=Ddim(steps=4),
        threshold=Static(),
        backend=Torch(device=Device.AUTO, precision=Precision.FP32),
        train=Training(batch=1, steps=steps, optimizer=Adam(), checkpoint_every=1, keep=1),
    )


def stalls(megaparameters: int, folder: Path) -> dict[str, Any]:
    """Seconds that training waits for saves of both kinds, in turns; the first of all, which takes memory for the copy, by itself."""
    import torch

    from cdmkit.data.resize import Resize
    from cdmkit.kinds import Batch
    from cdmkit.training.learner import Learner
    from cdmkit.training.saving import Saver
    from cdmkit.training.step import Objective

    stage = make_stage(megaparameters, 10**6)
    session = stage.backend.start()
    learner = Learner(stage, classes=0, seed=0, session=session)
    objective = Objective.of(stage, None, learner.network, learner.timesteps, classes=0, downsample=Resize.AREA, seed=0, session=session)
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))

    def wait(saver: Saver, last_chance: bool) -> float:
        saver.add(learner.update(objective, iter([batch])))
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        since = time.perf_counter()
        saver.save(last_chance=last_chance)
        waited = time.perf_counter() - since
        _ = saver.last  # the next one is not to wait for this one
        return waited

    with Saver(folder, learner, {}, lambda _event: None, None) as saver:
        first = wait(saver, False)
        pairs = [(wait(saver, True), wait(saver, False)) for _ in range(ROUNDS)]
    written = sum(path.stat().st_size for path in folder.glob("step-*/*"))
    blocking, beside = map(statistics.median, zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    parameters = learner.parameter_count()
    return {"parameters": parameters, "bytes": written, "first": first, "blocking": blocking, "beside": beside, "ratio": ratio}


def train(megaparameters: int, folder: Path, steps: int) -> dict[str, Any]:
    """Train to a step, from the newest checkpoint in the folder; gives the largest memory of the process, in bytes."""
    from cdmkit.builtin.shapes import Shapes
    from cdmkit.data.resize import Resize
    from cdmkit.training import StopRequest
    from cdmkit.training import train as train_stage

    train_stage(
        make_stage(megaparameters, steps),
        None,
        source=Shapes(resolution=8),
        downsample=Resize.AREA,
        classes=0,
        seed=0,
        folder=folder,
        metadata={},
        emit=lambda _event: None,
        stop=StopRequest(),
    )
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def measured(part: str, megaparameters: int, folder: Path) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--part", part, "--megaparameters", str(megaparameters), "--folder", str(folder)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)  # noqa: S603  (ourselves)
    return found


def main(megaparameters: int, parent: Path | None, as_json: bool) -> None:
    """Measure, and print."""
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=parent))
    try:
        found = measured("stalls", megaparameters, folder / "stalls")
        shutil.rmtree(folder / "stalls")
        found["undisturbed"] = measured("2", megaparameters, folder / "whole")["peak"]
        shutil.rmtree(folder / "whole")
        measured("1", megaparameters, folder / "parts")
        found["resumed"] = measured("2", megaparameters, folder / "parts")["peak"]
    finally:
        shutil.rmtree(folder)
    found["memory"] = found["resumed"] / found["undisturbed"]
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write(
        f"{found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 1e9:.2f} GB a checkpoint\n"
        f"training waits {found['blocking']:.3f} s for a save that it sees to its end, {found['beside']:.3f} s for one beside it "
        f"(the first of all {found['first']:.3f} s); ratio {found['ratio']:.3f}, wanted below {TARGET_STALL} (median of {ROUNDS} pairs)\n"
        f"largest memory {found['undisturbed'] / 1e9:.2f} GB undisturbed, {found['resumed'] / 1e9:.2f} GB resumed; "
        f"ratio {found['memory']:.3f}, wanted below {TARGET_MEMORY}\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megaparameters", type=int, default=100, metavar="N", help="size of the network (default: 100)")
    parser.add_argument("--folder", type=Path, help="where files are written (default: the system's place for temporary ones)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is None:
        main(given.megaparameters, given.folder, given.json)
    else:
        part = (
            stalls(given.megaparameters, given.folder)
            if given.part == "stalls"
            else train(given.megaparameters, given.folder, int(given.part))
        )
        sys.stdout.write(json.dumps(part))
