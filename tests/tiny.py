"""A cascade that trains in a second, and ways to call `cdmkit` on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from cdmkit.cli import main

HEAD = """\
schema = 1
name = "tiny"
[data]
source = { type = "shapes", resolution = 8, count = 32 }
classes = 8
[sample]
count = 16
batch = 5
[defaults.stage]
schedule = { type = "cosine", timesteps = 20 }
prediction = "epsilon"
variance = "fixed-small"
loss = { type = "simple" }
backbone = { type = "unet", channels = 8, multipliers = [1], blocks = 1, attention = [], heads = 1 }
sampler = { type = "ddim", steps = 2 }
backend = { type = "torch", device = "cpu", precision = "fp32" }
"""
TRAIN = """\
[defaults.stage.train]
batch = 4
steps = 4
optimizer = { type = "adam", lr = 0.03 }
ema = 0.5
log_every = 2
checkpoint_every = 2
sample_every = 2
"""
BASE = "[stage.base]\nresolution = 4\n"
FINE = """\
[stage.fine]
after = "base"
resolution = 8
augment = [{ type = "gaussian-noise" }]
condition = { mode = "truncated", s = 5 }
"""
RECIPE = HEAD + BASE + FINE + TRAIN
"""4 -> 8, classes 0 to 7, 4 steps each."""


def write(folder: Path, text: str = RECIPE, name: str = "tiny.toml") -> Path:
    """The recipe as a file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def call(*arguments: object) -> Result:
    """`cdmkit ...` in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(recipe: Path, *arguments: object) -> Path:
    """`cdmkit run` in this process, into `runs` beside the recipe; the folder of the run."""
    result = call("run", recipe, "--runs", recipe.parent / "runs", *arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip()).parents[1]


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """`cdmkit ...` as a process of its own, with one thread."""
    command = [sys.executable, "-m", "cdmkit", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process, when it ends."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def weights(run: Path, stage: str = "base") -> dict[str, bytes]:
    """Every file of a stage's newest checkpoint, by its path from the stage."""
    folder = run / "stages" / stage
    newest = max((folder / "ckpt").iterdir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in newest.iterdir()}
