"""Bits per dimension of a stage: closed forms, what the numbers do not depend on, and what cannot be measured."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from cdmkit.builtin.backends import Device, Precision, Torch
from cdmkit.builtin.samplers import Ddim
from cdmkit.builtin.schedules import Linear
from cdmkit.cascade import Handover, Mode
from cdmkit.component import evolve
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Prediction, Units, Variance
from cdmkit.draws import Stream
from cdmkit.errors import NumericsError, SetupError
from cdmkit.evaluation.bpd import Measurement, open_folder
from tests.evaluation.known import DEVIATION, PARENT, Exact, GivenImages, Grey, Hungry, Mean, Same, Watching, measured
from tests.training.components import CLASSES, RandomImages, make_sr_stage, make_stage, random_batch


def test_the_right_denoiser_of_normal_pixels_has_the_closed_form_and_is_not_below_their_entropy() -> None:
    """E KL at k is w_k^2 Var[x_0 | x_k] / (2 beta-tilde_k); what a level costs cannot be less than its entropy, and is not much more."""
    stage = make_stage(prediction=Prediction.X0)
    found = measured(stage, Exact(stage.process()), source=GivenImages(order=tuple(range(200)), normal=True), count=200, batch=200)
    chain = stage.process()
    ab, weight, tilde = chain.alpha_bars, chain.column("posterior_mean_x0"), chain.posterior_variances
    left = DEVIATION**2 * (1 - ab) / (ab * DEVIATION**2 + 1 - ab)
    expected = (weight**2 * left / (2 * tilde))[2:] / math.log(2)
    assert found.terms[1:] == pytest.approx(expected.tolist(), rel=0.05)
    assert sum(found.terms[1:]) == pytest.approx(float(expected.sum()), rel=0.01)
    assert found.x0_error == pytest.approx(left[1:].tolist(), rel=0.05)
    assert found.epsilon_error == pytest.approx((left * ab / (1 - ab))[1:].tolist(), rel=0.05)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * DEVIATION**2) - math.log2(2 / 255)
    assert entropy < found.total < entropy + 1.1


def test_the_prior_is_how_far_the_end_of_the_chain_is_from_noise() -> None:
    """KL(N(sqrt(alpha_bar_T) x_0, 1 - alpha_bar_T) || N(0, 1)) of a grey image, where much signal is left (DDPM eq. 5)."""
    stage = make_stage(prediction=Prediction.X0, schedule=Linear(timesteps=10, beta_start=0.01, beta_end=0.1))
    found = measured(stage, Mean(0.5), source=Grey(), units=Units.NATS)
    left = math.prod(1 - (0.01 + 0.01 * index) for index in range(10))
    assert left > 0.5
    expected = 0.5 * (left * (204 / 127.5 - 1) ** 2 + (1 - left) - 1 - math.log(1 - left))
    assert found.prior == pytest.approx(expected, rel=1e-5)


def test_the_order_of_images_makes_no_difference() -> None:
    """An image takes its noise, its augmentation and its label along."""
    stage = make_sr_stage(condition=Handover(s=30))
    first, other = (measured(stage, parent=PARENT, source=GivenImages(order=order)) for order in ((0, 1, 2, 3, 4, 5), (4, 2, 5, 0, 3, 1)))
    assert other.terms == pytest.approx(first.terms, rel=1e-5)
    assert (other.total, other.error) == pytest.approx((first.total, first.error), rel=1e-5)


@pytest.mark.parametrize("resolution", [4, 5])
def test_half_precision_is_for_the_network_alone(resolution: int) -> None:
    """Images and all tables stay float32, also where images shrink by no whole factor, which is a product of matrices."""
    halved, full = (
        measured(make_stage(resolution=resolution, prediction=Prediction.X0, backend=Torch(device=Device.CPU, precision=precision)), Same())
        for precision in (Precision.BF16, Precision.FP32)
    )
    assert halved == full


def test_noise_is_a_function_of_seed_stage_image_and_index() -> None:
    """What the network sees of image i at index k is x_0 and that noise, and nothing else (DDPM eq. 4)."""
    stage, seen = make_stage(prediction=Prediction.X0), Watching()
    order = (7, 3)
    measured(stage, seen, source=GivenImages(order=order), count=2, batch=2, seed=5, steps=4)
    chain, positions = stage.process().respace(4), torch.tensor(order)
    x0 = to_float(random_batch(positions).images)
    for k, x_t in zip((4, 3, 2, 1), seen.inputs, strict=True):
        noise = Stream.of(5, "base", "bound", "noise").normal(positions, (3, 8, 8), step=k)
        ab = chain.alpha_bars[k]
        torch.testing.assert_close(x_t, (ab.sqrt() * x0 + (1 - ab).sqrt() * noise).float())


def test_real_labels_are_told_where_the_data_has_classes() -> None:
    """Each image its own; none where the recipe ignores them."""
    order, seen, blind = (0, 1, 2, 3, 4, 5), Watching(), Watching()
    measured(make_stage(prediction=Prediction.X0), seen, source=GivenImages(order=order), steps=1)
    measured(make_stage(prediction=Prediction.X0), blind, source=GivenImages(order=order), steps=1, labeled=False)
    (told,), (untold,) = seen.labels, blind.labels
    expected = random_batch(torch.tensor(order)).labels
    assert len(set(expected.tolist())) > 1
    assert told is not None
    assert torch.equal(told, expected)
    assert untold is None


def test_the_error_is_that_of_a_mean_over_images() -> None:
    """The deviation of the images' own bounds, each measured alone, over the root of their number."""
    stage, order = make_stage(), (0, 1, 2, 3, 4)
    whole = measured(stage, source=GivenImages(order=order), count=5, batch=5)
    alone = [measured(stage, source=GivenImages(order=(image,)), count=1, batch=1).total for image in order]
    assert whole.total == pytest.approx(statistics.mean(alone), rel=1e-5)
    assert whole.error == pytest.approx(statistics.stdev(alone) / math.sqrt(5), rel=1e-3)


def test_too_little_memory_is_said_with_what_to_lower() -> None:
    """Not called a defect."""
    with pytest.raises(SetupError, match=r"not enough memory for 6 images of stage 'base' at once\. Lower --batch"):
        measured(make_stage(), Hungry())


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


def test_a_folder_can_be_tried_before_the_work(tmp_path: Path) -> None:
    """It is made; where that cannot be, it is said as when writing, with what to do."""
    open_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").touch()
    found = measured(make_stage(), steps=1)
    words = r"results cannot be written into .*file/x: .* choose another by --out"
    with pytest.raises(SetupError, match=words):
        open_folder(tmp_path / "file" / "x")
    with pytest.raises(SetupError, match=words):
        found.write(tmp_path / "file" / "x", {})
