"""The mathematics of one training step."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.augmentations import GaussianNoise
from cdmkit.builtin.backends import Device, Precision, Torch
from cdmkit.builtin.losses import Simple
from cdmkit.cascade import Stage
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition, NoiseInput, Variance
from cdmkit.draws import Stream
from cdmkit.kinds import Batch
from cdmkit.training.step import Objective
from tests.training.components import CLASSES, make_sr_stage, make_stage, random_batch


@attrs.define
class Ear:
    """A network that predicts 0 and remembers what it was told."""

    channels: int = 3
    x_t: Tensor = attrs.field(factory=lambda: torch.empty(0))
    level: Tensor = attrs.field(factory=lambda: torch.empty(0))
    condition: Condition = attrs.field(factory=Condition)

    def __call__(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.x_t, self.level, self.condition = x_t, level, condition
        return x_t.new_zeros(len(x_t), self.channels, *x_t.shape[2:])


def heard(stage: Stage, batch: Batch, parent: Stage | None = None) -> tuple[Tensor, Ear]:
    """The losses of a batch and what the network was told."""
    ear = Ear(6 if stage.variance.learned else 3)
    session = stage.backend.start()
    timesteps = stage.density.start(stage.process())
    objective = Objective.of(stage, parent, ear, timesteps, classes=CLASSES, downsample=Resize.AREA, seed=0, session=session)
    return objective(batch).weighted, ear


def pixels_of(batch: Batch) -> Tensor:
    """The batch's images in [-1, 1]."""
    return batch.images.float() / 127.5 - 1


BATCH = random_batch(torch.arange(64))
PARENT = make_stage(resolution=4)


def test_x_t_is_the_noised_image() -> None:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon, with epsilon of the stage's noise stream and t what it is told."""
    stage = make_stage()
    _, ear = heard(stage, BATCH)
    alpha_bar = stage.schedule.alpha_bars()[ear.level.long()].view(-1, 1, 1, 1)
    epsilon = Stream.of(0, "base", "noise").normal(BATCH.positions, (3, 8, 8), dtype=torch.float64)
    expected = alpha_bar.sqrt() * pixels_of(BATCH).double() + (1 - alpha_bar).sqrt() * epsilon
    torch.testing.assert_close(ear.x_t.double(), expected, atol=1e-5, rtol=1e-5)


def test_loss_is_that_of_each_image() -> None:
    """A network that predicts 0 for epsilon has, for each image, the mean square of its epsilon as loss."""
    losses, _ = heard(make_stage(), BATCH)
    epsilon = Stream.of(0, "base", "noise").normal(BATCH.positions, (3, 8, 8))
    torch.testing.assert_close(losses, epsilon.square().mean((1, 2, 3)))


def test_timesteps_cover_the_whole_chain() -> None:
    """Timesteps are uniform in {1, ..., T}: both ends occur, 0 does not, and the mean is (T + 1) / 2."""
    positions = torch.arange(4000)
    batch = Batch(torch.zeros(4000, 3, 8, 8, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64), positions)
    _, ear = heard(make_stage(), batch)
    assert (int(ear.level.min()), int(ear.level.max())) == (1, 100)
    assert float(ear.level.mean()) == pytest.approx(50.5, abs=4 * 28.9 / 4000**0.5)


def test_draws_belong_to_positions_not_to_batches() -> None:
    """Any split of a batch, in any order, gives every image the same noise, level and augmentation."""
    stage = make_sr_stage({"flip": True})
    _, whole = heard(stage, BATCH, PARENT)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for part in order.view(4, 16):
        _, ear = heard(stage, Batch(*(tensor[part] for tensor in BATCH)), PARENT)
        assert torch.equal(ear.level, whole.level[part])
        assert torch.equal(ear.x_t, whole.x_t[part])
        for mine, all_of_them in zip(ear.condition, whole.condition, strict=True):
            assert mine is not None
            assert all_of_them is not None
            assert torch.equal(mine, all_of_them[part])


def test_stages_draw_different_noise() -> None:
    """Two stages of one seed share no noise."""
    _, first = heard(make_stage(), BATCH)
    _, second = heard(make_stage(name="other"), BATCH)
    assert not torch.equal(first.level, second.level)


def test_alpha_bar_lies_between_neighbours() -> None:
    """With noise_input = "alpha-bar" the network is told 1000 sqrt of an alpha_bar strictly inside the table's steps."""
    stage = make_stage(noise_input=NoiseInput.ALPHA_BAR)
    _, ear = heard(stage, BATCH)
    table = stage.schedule.alpha_bars()
    drawn = (ear.level.double() / 1000).square()
    t = Stream.of(0, "base", "timestep").integers(BATCH.positions, 1, 100)
    assert bool((drawn <= table[t - 1] + 1e-6).all())
    assert bool((drawn >= table[t] - 1e-6).all())
    assert float((drawn - table[t]).abs().max()) > 1e-3


def test_low_res_is_augmented_then_enlarged() -> None:
    """The low-resolution image is the shrunk stored image, noised to the level told at low resolution, then enlarged (CDM Algorithm 1)."""
    stage = make_sr_stage()
    _, ear = heard(stage, BATCH, PARENT)
    assert ear.condition.levels is not None
    assert ear.condition.levels.shape == (64, 1)
    alpha_bar = PARENT.schedule.alpha_bars()[ear.condition.levels[:, 0].long()].float().view(-1, 1, 1, 1)
    small = Resize.AREA(pixels_of(BATCH), 4)
    epsilon = Stream.of(0, "sr", "augment", 0).normal(BATCH.positions, (3, 4, 4), step=1)
    expected = Resize.BILINEAR(alpha_bar.sqrt() * small + (1 - alpha_bar).sqrt() * epsilon, 8)
    torch.testing.assert_close(ear.condition.low_res, expected)


def test_levels_of_two_augmentations_stand_side_by_side() -> None:
    """Each augmentation has its own stream and its own column of levels."""
    _, ear = heard(make_sr_stage(augment=(GaussianNoise(), GaussianNoise())), BATCH, PARENT)
    assert ear.condition.levels is not None
    assert ear.condition.levels.shape == (64, 2)
    assert not torch.equal(ear.condition.levels[:, 0], ear.condition.levels[:, 1])


def test_flip_mirrors_image_and_low_res_together() -> None:
    """About half the images are mirrored, and the low-resolution image is that of the mirrored one."""
    stage = make_sr_stage({"flip": True}, augment=())
    _, ear = heard(stage, BATCH, PARENT)
    plain = Resize.BILINEAR(Resize.AREA(pixels_of(BATCH), 4), 8)
    low_res = ear.condition.low_res
    assert low_res is not None
    mirrored = Stream.of(0, "sr", "flip").uniform(BATCH.positions)[:, 0] < 0.5
    assert 16 < int(mirrored.sum()) < 48
    torch.testing.assert_close(low_res, torch.where(mirrored.view(-1, 1, 1, 1), plain.flip(-1), plain))
    alpha_bar = stage.schedule.alpha_bars()[ear.level.long()].float().view(-1, 1, 1, 1)
    epsilon = Stream.of(0, "sr", "noise").normal(BATCH.positions, (3, 8, 8))
    x0 = torch.where(mirrored.view(-1, 1, 1, 1), pixels_of(BATCH).flip(-1), pixels_of(BATCH))
    torch.testing.assert_close(ear.x_t, alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * epsilon, atol=1e-5, rtol=1e-5)


def test_images_shrink_to_the_stage() -> None:
    """A stage below the source's resolution trains on shrunk images."""
    _, ear = heard(PARENT, BATCH)
    assert ear.x_t.shape == (64, 3, 4, 4)


@pytest.mark.parametrize(("labels", "classes"), [(False, CLASSES), (True, 0)])
def test_no_label_is_told_where_there_is_none(labels: bool, classes: int) -> None:
    """The network is told no label where the stage wants none or the data has none."""
    stage = make_stage(labels=labels)
    ear = Ear()
    session, timesteps = stage.backend.start(), stage.density.start(stage.process())
    Objective.of(stage, None, ear, timesteps, classes=classes, downsample=Resize.AREA, seed=0, session=session)(BATCH)
    assert ear.condition.label is None
    _, told = heard(make_stage(), BATCH)
    assert told.condition.label is not None
    assert torch.equal(told.condition.label, BATCH.labels)


def test_losses_are_float32_under_bf16() -> None:
    """A network in bf16 has its loss computed in float32."""
    stage = make_stage(backend=Torch(device=Device.CPU, precision=Precision.BF16), variance=Variance.LEARNED_RANGE, loss=Simple())
    network = stage.backbone.build(stage.network_spec(CLASSES))
    session, timesteps = stage.backend.start(), stage.density.start(stage.process())
    objective = Objective.of(stage, None, network, timesteps, classes=CLASSES, downsample=Resize.AREA, seed=0, session=session)
    losses = objective(BATCH).weighted
    assert losses.dtype == torch.float32
    assert bool(losses.isfinite().all())
