"""A cascade of three stages on real photographs, killed half-way and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cdmkit.runs import Run

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("CDMKIT_TEST_DATA", ROOT.parent / "shared" / "data"))
STEPS = 60
REDUCTION = {
    "defaults.stage.backbone.channels": 16,
    "defaults.stage.backbone.blocks": 1,
    "defaults.stage.train.batch": 16,
    "defaults.stage.train.steps": STEPS,
    "defaults.stage.train.checkpoint_every": 10,
    "defaults.stage.sampler.steps": 8,
    "sample.count": 20,
}


def _start(folder: Path, *more: str) -> subprocess.Popen[str]:
    sets = [word for key, value in REDUCTION.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "cdmkit", "run", str(ROOT / "recipes" / "imagenette64.toml"), "--run", str(folder), *sets, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "CDMKIT_DATA": str(DATA)})


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "imagenette64").is_dir(), reason=f"needs imagenette64 shards in {DATA} (CDMKIT_TEST_DATA)")
def test_three_stages_train_on_real_photographs_and_survive_a_kill(tmp_path: Path) -> None:
    """Killed while the second stage trains, the run goes on from there: the first stage is not trained again, and samples are made."""
    run = Run(tmp_path / "run")
    with _start(run.path) as first:
        deadline = time.monotonic() + 300
        while run.steps().get("sr32", 0) < STEPS // 2:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    assert run.state == "interrupted"
    base_before = (run.path / "stages" / "base" / "done").stat().st_mtime_ns
    left = run.steps()["sr32"]

    with _start(run.path, "--resume") as second:
        output, _ = second.communicate()
    assert second.returncode == 0
    assert (run.path / "stages" / "base" / "done").stat().st_mtime_ns == base_before
    assert _starts(run.path) == [("base", 0), ("sr32", 0), ("sr32", left), ("sr64", 0)]
    assert run.steps() == {"base": STEPS, "sr32": STEPS, "sr64": STEPS}
    with Image.open(output.strip()) as grid:
        assert grid.size[0] > 64


def _starts(run: Path) -> list[tuple[str, int]]:
    """Each start of a stage in the log: its name, and the step it began from."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["stage"], line["step"]) for line in lines if line["event"] == "stage_started"]
