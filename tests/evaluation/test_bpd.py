"""Bits per dimension of a stage: a closed form, what the numbers do not depend on, and what cannot be measured."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.samplers import Ddim
from cdmkit.cascade import Handover, Mode, Stage
from cdmkit.component import component, evolve, option
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition, Prediction, Units, Variance
from cdmkit.errors import NumericsError
from cdmkit.evaluation.bpd import Measurement, Result
from cdmkit.kinds import Batch, Batches, DataCard, Source
from tests.training.components import CLASSES, RandomImages, make_sr_stage, make_stage

PARENT = make_stage(resolution=4)


def measured(stage: Stage, network: nn.Module | None = None, parent: Stage | None = None, **options: Any) -> Result:
    """On random images; a network of random weights unless one is given."""
    session = stage.backend.start()
    if network is None:
        torch.manual_seed(0)
        network = stage.backbone.build(stage.network_spec(CLASSES)).eval()
    defaults: dict[str, Any] = {"source": RandomImages(), "downsample": Resize.AREA, "count": 6, "batch": 6, "seed": 0}
    return Measurement(**(defaults | options))(stage, parent, network, session, lambda _stage: None)


class Mean(nn.Module):
    """Predicts the same grey everywhere: x_0 = value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_t: Tensor, _level: Tensor, _condition: Condition) -> Tensor:
        return torch.full_like(x_t, self.value)


@component("grey")
class Grey(Source):
    """Images of one grey, 8-bit level `level`."""

    level: int = option(204, help="of all pixels")

    def card(self) -> DataCard:
        return DataCard(resolution=8, count=100, classes=0, fingerprint="grey")

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        return GreyBatches(self.level, batch)


@attrs.define
class GreyBatches(Batches):
    """The stream of `Grey`."""

    level: int
    batch: int

    def __next__(self) -> Batch:
        images = torch.full((self.batch, 3, 8, 8), self.level, dtype=torch.uint8)
        return Batch(images, torch.zeros(self.batch, dtype=torch.int64), torch.arange(self.batch))

    def close(self) -> None:
        """Nothing is open."""


def test_terms_of_a_constant_prediction_have_their_closed_form() -> None:
    """An x_0 that is off by d costs (w d)^2 / (2 beta-tilde) nats at every t > 1, w its weight in the posterior mean (DDPM eq. 7)."""
    stage = make_stage(prediction=Prediction.X0)
    found = measured(stage, Mean(0.5), source=Grey(), units=Units.NATS)
    chain, d = stage.process(), (204 / 127.5 - 1) - 0.5
    expected = chain.column("posterior_mean_x0") ** 2 * d**2 / (2 * chain.posterior_variances)
    assert found.terms[1:] == pytest.approx(expected[2:].tolist(), rel=1e-3)
    assert found.x0_error == pytest.approx([d**2] * 100, rel=1e-4)
    assert found.total == pytest.approx(sum(found.terms) + found.prior)
    assert (found.units, found.calls, found.timesteps) == ("nats per dimension", 100, list(range(1, 101)))


def test_the_right_answer_costs_the_decoder_alone() -> None:
    """Nothing for t > 1; at t = 1 the chance that a normal draw of that deviation falls into the middle bin (DDPM eq. 13)."""
    stage = make_stage(prediction=Prediction.X0)
    found = measured(stage, Mean(204 / 127.5 - 1), source=Grey())
    deviation = math.exp(0.5 * float(stage.process().column("posterior_log_variance")[1]))
    assert found.terms[1:] == pytest.approx([0.0] * 99, abs=1e-6)
    assert found.terms[0] == pytest.approx(-math.log2(math.erf(1 / 255 / deviation / math.sqrt(2))), rel=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: (make_stage(), None), lambda: (make_sr_stage(condition=Handover(s=30)), PARENT)], ids=["base", "sr"]
)
def test_batches_make_no_difference(make: Any) -> None:
    """The noise belongs to the image and the point."""
    stage, parent = make()
    whole, parts = (measured(stage, parent=parent, batch=batch, count=7) for batch in (7, 3))
    assert parts.images == 7
    assert parts.terms == pytest.approx(whole.terms, rel=1e-5)
    assert parts.error == pytest.approx(whole.error, rel=1e-4)
    assert whole == measured(stage, parent=parent, batch=7, count=7)


def test_seeds_and_images_make_a_difference() -> None:
    """Other noise, another number."""
    first = measured(make_stage())
    assert measured(make_stage(), seed=1).total != first.total
    assert measured(make_stage(), count=5).total != first.total


def test_a_respaced_chain_has_fewer_terms_and_a_looser_bound() -> None:
    """For a network that knows the answer but for a little."""
    stage = make_stage(prediction=Prediction.X0)
    full, short = (measured(stage, Mean(0.55), source=Grey(), steps=steps) for steps in (None, 10))
    assert (len(short.terms), short.calls, short.chain, short.timesteps[-1]) == (10, 10, 100, 100)
    assert short.total < math.inf
    assert short.terms != full.terms


def test_a_stage_that_enlarges_is_told_the_real_image_noised_to_s() -> None:
    """Whatever its mode: what its network is told is what it is told in the non-truncated way."""
    plain, noised, truncated = (
        measured(make_sr_stage(condition=Handover(mode=mode, s=s)), parent=PARENT)
        for mode, s in ((Mode.NON_TRUNCATED, 0), (Mode.NON_TRUNCATED, 80), (Mode.TRUNCATED, 80))
    )
    assert noised.total != plain.total
    assert truncated == noised


def test_samplers_play_no_part() -> None:
    """The bound is of the chain, not of a way to sample it."""
    stage = make_stage()
    assert measured(stage) == measured(evolve(stage, sampler=Ddim(steps=2)))


def test_the_network_is_called_as_often_as_announced() -> None:
    """T times for each batch, or as often as the respaced chain has points."""
    stage = make_stage()
    calls: list[str] = []
    measure = Measurement(source=RandomImages(), downsample=Resize.AREA, count=5, batch=2, seed=0, steps=4)
    network = stage.backbone.build(stage.network_spec(CLASSES)).eval()
    measure(stage, None, network, stage.backend.start(), calls.append)
    assert len(calls) == measure.calls(stage) == 12
    assert attrs.evolve(measure, steps=None).calls(stage) == 300


def test_a_bound_that_is_not_finite_is_an_error_that_names_the_stage() -> None:
    """NaN from the network."""
    with pytest.raises(NumericsError, match="stage 'base': the bound of 6 of 6 images is not finite"):
        measured(make_stage(prediction=Prediction.X0), Mean(math.nan), source=Grey())


def test_what_is_written_is_what_was_measured(tmp_path: Path) -> None:
    """JSON of all numbers, CSV of the curve, a picture; of one image there is no standard error."""
    found = measured(make_stage(variance=Variance.FIXED_LARGE), count=1, batch=1)
    found.write(tmp_path / "eval", {"seed": 3})
    told = json.loads((tmp_path / "eval" / "bpd-base.json").read_text())
    assert (told["total"], told["seed"], told["error"], told["terms"]) == (found.total, 3, None, found.terms)
    rows = list(csv.DictReader((tmp_path / "eval" / "bpd-base.csv").read_text().splitlines()))
    assert [float(row["term"]) for row in rows] == found.terms
    assert [int(row["timestep"]) for row in rows] == found.timesteps
    assert (tmp_path / "eval" / "bpd-base.png").stat().st_size > 1000
