"""Conditioning augmentation: per example, at low resolution, with the network told what was done."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.augmentations import GaussianBlur, GaussianNoise
from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Augmentation

PARENT = Cosine(timesteps=200).process().to("cpu")


def draw(*indices: int) -> Draw:
    return Draw(Stream.of(0, "augment"), torch.tensor(indices))


def many(count: int) -> Draw:
    return draw(*range(count))


def images(count: int, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def told(level: Tensor | None) -> Tensor:
    assert level is not None
    return level


def test_noise_is_added_at_the_step_that_is_told() -> None:
    """(z_s - sqrt(alpha_bar_s) z_0) / sqrt(1 - alpha_bar_s) is the example's standard normal noise, for s the told level."""
    low_res = images(400)
    z, level = GaussianNoise().train(low_res, PARENT, many(400))
    s = told(level).long()
    ab = PARENT.alpha_bars[s].view(-1, 1, 1, 1)
    noisy = s > 0
    epsilon = ((z - ab.sqrt() * low_res) / (1 - ab).sqrt())[noisy]
    torch.testing.assert_close(epsilon, many(400).normal((3, 8, 8), step=1)[noisy], rtol=0, atol=2e-3)
    assert float(epsilon.mean()) == pytest.approx(0, abs=4 / math.sqrt(epsilon.numel()))
    assert float(epsilon.var()) == pytest.approx(1, abs=6 / math.sqrt(epsilon.numel()))


def test_steps_are_drawn_from_zero_to_t_for_each_example() -> None:
    """That is s ~ U{0..T}: both ends occur, the mean is T / 2."""
    level = told(GaussianNoise().train(torch.zeros(4000, 3, 1, 1), PARENT, many(4000)).level)
    assert level.dtype == torch.float32
    assert (int(level.min()), int(level.max())) == (0, 200)
    assert float(level.mean()) == pytest.approx(100, abs=4 * 58 / math.sqrt(4000))
    assert len(set(level.tolist())) == 201


def test_max_s_bounds_the_steps_drawn_in_training() -> None:
    """That is s ~ U{0..max_s}."""
    level = told(GaussianNoise(max_s=5).train(torch.zeros(2000, 3, 1, 1), PARENT, many(2000)).level)
    assert (int(level.min()), int(level.max())) == (0, 5)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (GaussianNoise(max_s=201), "max_s = 201 is beyond 200"),
        (GaussianNoise(schedule=Linear(timesteps=40), max_s=41), "max_s = 41 is beyond 40"),
        (GaussianNoise(max_s=9), "condition.s = 10 is beyond max_s = 9"),
        (GaussianBlur(size=17), "size = 17 is too wide for images of 8 pixels"),
    ],
)
def test_an_augmentation_that_does_not_suit_the_parent_is_refused(augmentation: Augmentation, words: str) -> None:
    """Steps that do not exist or were never trained on, and a kernel that reaches beyond the mirrored edges."""
    with pytest.raises(ValueError, match=words):
        augmentation.check(Cosine(timesteps=200), 8, 10)


@pytest.mark.parametrize("augmentation", [GaussianNoise(), GaussianNoise(max_s=10), GaussianNoise(max_s=200), GaussianBlur(size=15)])
def test_an_augmentation_that_suits_the_parent_works(augmentation: Augmentation) -> None:
    """Up to the very ends of its range."""
    augmentation.check(Cosine(timesteps=200), 8, 10)
    assert bool(augmentation.train(images(50), PARENT, many(50)).low_res.isfinite().all())


@pytest.mark.parametrize("augmentation", [GaussianNoise(), GaussianBlur()])
def test_an_example_is_augmented_by_its_index_alone(augmentation: Augmentation) -> None:
    """Not by its place in the batch or by its neighbours."""
    low_res = images(6)
    together = augmentation.train(low_res, PARENT, draw(5, 9, 2**33, 0, 7, 8))
    for row, index in enumerate((5, 9, 2**33, 0, 7, 8)):
        alone = augmentation.train(low_res[row : row + 1], PARENT, draw(index))
        torch.testing.assert_close(together.low_res[row], alone.low_res[0], rtol=1e-6, atol=1e-6)


def test_noise_follows_its_own_schedule_where_it_has_one() -> None:
    """alpha_bars and T are those of `schedule`, not of the parent."""
    schedule = Linear(timesteps=40)
    augmentation = GaussianNoise(schedule=schedule)
    low_res = images(300)
    z, level = augmentation.train(low_res, PARENT, many(300))
    s = told(level).long()
    assert int(s.max()) == 40
    own = schedule.process().to("cpu")
    torch.testing.assert_close(z, own.noise(low_res, many(300).normal((3, 8, 8), step=1), s))
    sampled = augmentation.sample(low_res, PARENT, many(300), s=40, truncated=False).low_res
    torch.testing.assert_close(sampled, own.noise(low_res, many(300).normal((3, 8, 8), step=1), torch.full((300,), 40)))


def test_no_noise_leaves_the_image_bit_for_bit() -> None:
    """With s = 0 in sampling, and the examples that draw it in training."""
    low_res = images(600)
    z, level = GaussianNoise().sample(low_res[:3], PARENT, many(3), s=0, truncated=False)
    assert torch.equal(z, low_res[:3])
    assert told(level).tolist() == [0, 0, 0]
    trained = GaussianNoise(max_s=3).train(low_res, PARENT, many(600))
    clean = told(trained.level) == 0
    assert 100 < int(clean.sum()) < 200
    assert torch.equal(trained.low_res[clean], low_res[clean])
    assert bool((trained.low_res[~clean] != low_res[~clean]).flatten(1).any(1).all())


def test_a_finished_sample_is_noised_to_s() -> None:
    """Non-truncated: q(z_s | z_0), and s is told."""
    z, level = GaussianNoise().sample(torch.full((500, 3, 8, 8), 0.5), PARENT, many(500), s=120, truncated=False)
    ab = float(PARENT.alpha_bars[120])
    assert float(z.mean()) == pytest.approx(0.5 * math.sqrt(ab), abs=4 / math.sqrt(z.numel()))
    assert float(z.var()) == pytest.approx(1 - ab, rel=0.03)
    assert set(told(level).tolist()) == {120}


def test_a_truncated_sample_is_noised_already() -> None:
    """It is handed on as it is, with s told."""
    low_res = images(2)
    z, level = GaussianNoise().sample(low_res, PARENT, many(2), s=120, truncated=True)
    assert z is low_res
    assert told(level).tolist() == [120, 120]


def blurred_in_numpy(image: Tensor, sigma: float, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """One image, one pixel at a time: the normalised product of two Gaussians, edges mirrored without repeating the border."""
    margin = size // 2
    padded = np.pad(image.double().numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    offsets = np.arange(-margin, margin + 1)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    channels, height, width = image.shape
    out = np.empty((channels, height, width))
    for y in range(height):
        for x in range(width):
            out[:, y, x] = (padded[:, y : y + size, x : x + size] * kernel).sum((1, 2))
    return out


@pytest.mark.parametrize("size", [3, 5])
def test_blur_convolves_each_image_with_its_own_gaussian(size: int) -> None:
    """Against a convolution of each image alone, with the sigma its draw gives."""
    blur, low_res = GaussianBlur(probability=1.0, min_sigma=0.4, max_sigma=1.5, size=size), images(5)
    sigmas = many(5).uniform(0.4, 1.5, step=0)
    found = blur.train(low_res, PARENT, many(5)).low_res
    for row in range(5):
        np.testing.assert_allclose(found[row].numpy(), blurred_in_numpy(low_res[row], float(sigmas[row]), size), atol=1e-6)


def test_blur_takes_a_share_of_the_examples_and_leaves_the_rest() -> None:
    """Half of them; the others stay bit for bit, and no level is told."""
    low_res = images(2000, size=4)
    found, level = GaussianBlur().train(low_res, PARENT, many(2000))
    changed = (found != low_res).flatten(1).any(1)
    assert float(changed.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    assert level is None


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_blur_can_take_none_or_all(probability: float, share: float) -> None:
    """The ends of the range mean what they say."""
    low_res = images(300, size=4)
    found = GaussianBlur(probability=probability).train(low_res, PARENT, many(300)).low_res
    assert float((found != low_res).flatten(1).any(1).double().mean()) == share


def test_blur_leaves_flat_images_flat() -> None:
    """The kernel sums to 1 and edges are mirrored, so nothing darkens."""
    flat = torch.full((4, 3, 6, 6), 0.7)
    torch.testing.assert_close(GaussianBlur(probability=1.0).train(flat, PARENT, many(4)).low_res, flat)


def test_blur_is_for_training_only() -> None:
    """Sampling hands the parent's image on as it is."""
    low_res = images(2)
    z, level = GaussianBlur(probability=1.0).sample(low_res, PARENT, many(2), s=0, truncated=False)
    assert z is low_res
    assert level is None


@pytest.mark.parametrize(("options", "words"), [({"size": 4}, "must be odd"), ({"min_sigma": 0.9}, "above max_sigma")])
def test_a_blur_that_makes_no_sense_is_refused(options: dict[str, int], words: str) -> None:
    """An even kernel has no centre; a range must not be empty."""
    with pytest.raises(ValueError, match=words):
        GaussianBlur(**options)


def test_augmentations_say_what_they_do() -> None:
    """What the stage and the recipe's checks go by."""
    assert (GaussianNoise.tells_level, GaussianNoise.noises) == (True, True)
    assert (GaussianBlur.tells_level, GaussianBlur.noises) == (False, False)
