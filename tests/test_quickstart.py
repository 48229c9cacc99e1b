"""The quickstart keeps its promise: what it makes is recognisable, and of the class that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.builtin.shapes import Shapes
from cdmkit.builtin.webdataset import WebDataset
from cdmkit.data.pixels import to_float

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.toml"
CLASSES = 8


def _cdmkit(*words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user has it: all cores
    done = subprocess.run([sys.executable, "-m", "cdmkit", *words], check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


def _classifier() -> nn.Module:
    """A small network trained on real shapes, seen through noise so that it does not lean on single pixels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    shapes = Shapes(seed=1)
    for step in range(400):
        images, labels = shapes.render(torch.arange(64 * step, 64 * (step + 1)))
        noisy = to_float(images) + 0.1 * torch.randn(images.shape)
        optimizer.zero_grad()
        F.cross_entropy(model(noisy), labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        optimizer.step()
    return model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(to_float(images)).argmax(1) == labels).float().mean())


@pytest.mark.slow
def test_a_classifier_trained_on_real_shapes_recognises_the_samples_of_the_quickstart(tmp_path: Path) -> None:
    """At least 90 % of the samples are taken for the class that was asked for, by a judge that knows real shapes from wrong labels."""
    grid = Path(_cdmkit("run", str(RECIPE), "--run", str(tmp_path / "run")))
    assert grid.is_file()
    _cdmkit("sample", str(tmp_path / "run"), "--count", "256", "--seed", "1", "--out", str(tmp_path / "more"))
    with WebDataset(shards=str(tmp_path / "more" / "sr32-*.tar")).open(256, 0, 1, 0, 0) as batches:
        samples, wanted, _ = next(batches)
    judge = _classifier()
    real, labels = Shapes(seed=2).render(torch.arange(512))
    assert _accuracy(judge, real, labels) > 0.98
    assert _accuracy(judge, real, (labels + 1) % CLASSES) < 0.02
    assert _accuracy(judge, samples, wanted) >= 0.9
