"""Figures as signed distances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cdmkit.data.figures import FIGURES, Figure, polygon


def plane(size: int = 400, half: float = 1.5) -> tuple[Tensor, Tensor]:
    """Points of a square around the origin."""
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) * (2 * half / size) - half
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_lies_in_the_unit_disc(figure: Figure) -> None:
    """A figure of radius 1 does not leave the disc by more than a little, and fills a fair share of it."""
    x, y = plane()
    inside = figure(x, y) < 0
    assert (x**2 + y**2)[inside].max() < 1.13**2
    assert 0.2 < inside.double().mean() * 9 / math.pi < 0.9


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_is_a_distance_at_the_outline(figure: Figure) -> None:
    """Near almost all of the outline the gradient's length is 1, so that coverage is right."""
    x, y = (t.requires_grad_() for t in plane())
    distance = figure(x, y)
    gradient = torch.autograd.grad(distance.sum(), (x, y))
    near = distance.detach().abs() < 0.03
    slope = torch.hypot(*gradient)[near]
    assert ((slope - 1).abs() < 1e-6).double().mean() > 0.97


def test_polygon_is_exact() -> None:
    """A polygon's distance is that to the nearest of many points on its outline, negative inside."""
    corners = [(0.0, 0.9), (-0.5, -0.7), (0.1, -0.2), (0.8, -0.6)]
    steps = torch.linspace(0, 1, 2000, dtype=torch.float64)
    ends = torch.tensor([*corners, corners[0]], dtype=torch.float64)
    outline = torch.cat([a + (b - a) * steps[:, None] for a, b in itertools.pairwise(ends)])
    x, y = plane(24)
    expected = torch.cdist(torch.stack((x.flatten(), y.flatten()), dim=1), outline).min(dim=1).values.view_as(x)
    distance = polygon(corners)(x, y)
    assert torch.allclose(distance.abs(), expected, atol=1e-3)
    probe = torch.tensor([0.0, 0.0, 0.9, 0.1]), torch.tensor([0.0, 0.5, 0.9, -0.5])
    assert (polygon(corners)(*probe) < 0).tolist() == [True, True, False, False]


def test_no_two_are_alike() -> None:
    """Any two figures differ on a good share of their joint area."""
    x, y = plane(200)
    inside = {name: figure(x, y) < 0 for name, figure in FIGURES.items()}
    for name, one in inside.items():
        for other, two in inside.items():
            if name < other:
                assert (one ^ two).sum() > 0.15 * (one | two).sum(), (name, other)
