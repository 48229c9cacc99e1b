"""`cdmkit bench`: what it measures, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from cdmkit.benching import Bench, Measured, Speed
from cdmkit.benching.instruments import WARM_UP, PeakMemory, precision, seconds_per_step
from cdmkit.builtin.backends import Device, Precision, Torch
from cdmkit.cascade.tracing import trace
from cdmkit.component import component, evolve
from cdmkit.diffusion import Condition
from cdmkit.errors import SetupError
from cdmkit.kinds import Backbone, NetworkSpec
from cdmkit.plugins import load_plugins
from cdmkit.recipe import Recipe, read
from tests import tiny

CPU = torch.device("cpu")
NO_DATA = ("--set", 'data.source={ type = "webdataset", shards = "nowhere/train-*.tar" }')


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that are multiplied at once."""
    monkeypatch.setattr("cdmkit.benching.instruments._SIZES", (64,))
    monkeypatch.setattr("cdmkit.benching.instruments._PATIENCE", 0.001)


def measured(*arguments: object) -> list[dict[str, Any]]:
    """What `cdmkit bench --json` prints."""
    result = tiny.call("bench", *arguments, "--seconds", 0.01, "--json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_stages_are_measured_without_data_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on its own backend, with all that `Measured` names."""
    monkeypatch.chdir(tmp_path)
    base, fine = measured(tiny.write(tmp_path), *NO_DATA)
    assert list(base) == list(fine) == [field.name for field in attrs.fields(Measured)]
    assert list(base["step"]) == [field.name for field in attrs.fields(Speed)]
    assert (base["stage"], fine["stage"], base["precision"]) == ("base", "fine", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_numbers_follow_from_one_another(tmp_path: Path) -> None:
    """Batches are those of the recipe; a training step counts for three calls, and a chain takes all its steps."""
    path = tiny.write(tmp_path)
    (fine,) = measured(path, "--stage", "fine", "--set", "stage.fine.train.accumulate=2")
    traced = trace(read(path, load_plugins()).stage["fine"], 8)
    assert (fine["parameters"], fine["forward_flops"], fine["calls"]) == (traced.parameters, traced.flops, 2)
    for what, images, passes, calls in (("call", 2, 1, 1), ("step", 4, 3, 1), ("sampling", 5, 1, 2)):
        speed = fine[what]
        assert speed["images"] == images
        assert speed["images_per_second"] == pytest.approx(images / calls / speed["ms"] * 1000)
        assert speed["gflops"] == pytest.approx(passes * traced.flops * images / speed["ms"] / 1e6)
        assert speed["utilization"] == pytest.approx(speed["gflops"] / fine["matmul_gflops"])


def test_a_table_for_people(tmp_path: Path) -> None:
    """Three rows for each stage, and what is compared with; what is measured next is told on stderr."""
    result = tiny.call("bench", tiny.write(tmp_path), "--seconds", 0.01)
    assert result.exit_code == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines() if "step" in line or " call " in line] == [
        *("base", "training", "sampling"),
        *("fine", "training", "sampling"),
    ]
    assert "the fastest product of two matrices in float32 on cpu" in result.stdout
    assert "fine: training steps" in result.stderr


def test_an_unknown_stage_is_a_usage_error(tmp_path: Path) -> None:
    """With the nearest name."""
    result = tiny.call("bench", tiny.write(tmp_path), "--stage", "fin")
    assert result.exit_code == 2
    assert 'no stage "fin"; did you mean "fine"?' in result.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The tiny cascade's."""
    return read(tiny.write(tmp_path), load_plugins())


def test_a_stage_that_is_sampled_as_it_came_has_no_training_step(recipe: Recipe) -> None:
    """Its file of weights need not be there."""
    stage = evolve(recipe.stage["base"], weights="nowhere.safetensors", train=evolve(recipe.stage["base"].train, steps=0))
    found = Bench(recipe=recipe, plugins=load_plugins(), seconds=0.01)(stage)
    assert found.step is None
    assert found.sampling.images_per_second > 0


class Greedy(nn.Module):
    """A network that needs more than there is, in training or when sampled."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.greedy = training

    def forward(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        if self.training == self.greedy and len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x_t * self.weight


@component("greedy")
class NeedsMuch(Backbone):
    """What builds one."""

    training: bool = True

    def build(self, spec: NetworkSpec) -> nn.Module:
        return Greedy(self.training)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (True, r"stage 'base': the device has not enough memory for 4 images of 4 x 4"),
        (False, r"memory to sample 5 images up to stage 'base'"),
    ],
)
def test_too_little_memory_is_said(recipe: Recipe, training: bool, message: str) -> None:
    """As training and sampling say it, with what to lower."""
    base = recipe.stage["base"]
    stage = evolve(base, backbone=NeedsMuch(training=training), train=evolve(base.train, accumulate=1 if training else 2))
    with pytest.raises(SetupError, match=message):
        Bench(recipe=recipe, plugins=load_plugins(), seconds=0.01)(stage)


# The instruments


def test_slow_steps_are_few() -> None:
    """After those that warm up, three, however little time there is; more where there is."""

    def steps(seconds: float) -> int:
        laps: list[int] = []

        def work(lap: Any) -> None:
            laps.append(1)
            lap()

        assert seconds_per_step(work, CPU, seconds) > 0
        return len(laps)

    assert steps(1e-9) == WARM_UP + 3
    assert steps(0.01) > WARM_UP + 3


def test_work_may_be_left_between_two_steps() -> None:
    """A chain is not sampled to its end when there are enough steps."""
    ended: list[bool] = []

    def work(lap: Any) -> None:
        for _ in range(100):
            lap()
        ended.append(True)

    seconds_per_step(work, CPU, 1e-9)
    assert ended == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peaks there")
def test_peaks_of_memory_are_seen_though_they_are_over() -> None:
    """Of what was resident in between; each counts anew."""
    size = 2**26
    memory = PeakMemory(CPU)
    torch.ones(size, dtype=torch.uint8)
    assert 0.9 * size < (memory.read() or 0) < 2 * size
    assert (PeakMemory(CPU).read() or 0) < size / 2


def test_precision_is_that_of_products() -> None:
    """As the backend's autocast has it."""
    kinds = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}
    assert {each: precision(Torch(device=Device.CPU, precision=each).start()) for each in kinds} == kinds
