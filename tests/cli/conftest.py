"""What tests of commands share: calling one, and small recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cdmkit.cli import main

RECIPE = """\
schema = 1
name = "shapes"
[data]
source = { type = "shapes" }
classes = 8
[defaults.stage]
schedule = { type = "cosine", timesteps = 100 }
loss = { type = "simple" }
backbone = { type = "unet", channels = 8, multipliers = [1], attention = [] }
sampler = { type = "ancestral", steps = 10 }
backend = { type = "torch" }
train = { batch = 8, steps = 100, optimizer = { type = "adam" } }
[stage.base]
resolution = 8
[stage.fine]
after = "base"
resolution = 32
augment = [{ type = "gaussian-noise" }]
condition = { mode = "truncated", s = 20 }
"""

Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call `cdmkit ...` in a folder with `good.toml` and `bad.toml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CDMKIT_TRACEBACK", raising=False)
    Path("good.toml").write_text(RECIPE)
    Path("bad.toml").write_text(RECIPE.replace("resolution = 32", "resolutoin = 32"))
    Path("elsewhere.toml").write_text(RECIPE.replace('"cosine"', '"of-a-plugin"'))

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)

    return call
