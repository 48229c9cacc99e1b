"""Thresholds: static and dynamic, each image by itself."""

from __future__ import annotations

import pytest
import torch

from cdmkit.builtin.thresholds import Dynamic, Static, Unthresholded

X0 = 1.5 * torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_static_clips_and_none_does_not() -> None:
    """To [-1, 1]; what is given is not written to."""
    before = X0.clone()
    assert torch.equal(Static()(X0), before.clamp(-1, 1))
    assert Unthresholded()(X0) is X0
    assert torch.equal(X0, before)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("largest", [None, 1.3])
def test_dynamic_clips_to_a_percentile_and_divides_by_it(percentile: float, largest: float | None) -> None:
    """Against torch.quantile, image by image."""
    found = Dynamic(percentile=percentile, largest=largest)(X0)
    for row, x0 in enumerate(X0):
        q = max(1.0, float(torch.quantile(x0.abs().flatten(), percentile)))
        q = min(q, largest or q)
        torch.testing.assert_close(found[row], x0.clamp(-q, q) / q, rtol=1e-12, atol=1e-12)
    assert float(found.abs().max()) <= 1


def test_dynamic_leaves_images_within_range_as_they_are() -> None:
    """Q is at least 1, so nothing is made brighter."""
    small = X0 / X0.abs().max()
    torch.testing.assert_close(Dynamic()(small), small, rtol=0, atol=0)


def test_dynamic_judges_each_image_by_itself() -> None:
    """A bright neighbour changes nothing."""
    changed = X0.clone()
    changed[1] *= 9
    first, second = Dynamic()(X0), Dynamic()(changed)
    assert [bool(torch.equal(a, b)) for a, b in zip(first, second, strict=True)] == [True, False, True]


def test_dynamic_of_one_value_is_static() -> None:
    """Nothing to interpolate between."""
    one = torch.full((2, 1, 1, 1), 3.0)
    assert torch.equal(Dynamic()(one), torch.ones(2, 1, 1, 1))
