"""Dropout that belongs to the images: its rate, its independence, and what it does not depend on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Dropout, key_dropout


def lost(p: float, images: Tensor, elements: int, layers: int = 1) -> list[Tensor]:
    """What each of some layers leaves out of the images, bool [B, elements]."""
    network = nn.Sequential(*(Dropout(p) for _ in range(layers)))
    key_dropout(network, Draw(Stream.of(0, "dropout"), images))
    return [layer(torch.ones(len(images), elements)) == 0 for layer in network]


def scores(p: float, gone: Tensor) -> Tensor:
    """Mean 0, variance 1 where each is gone with probability p."""
    return (gone.double() - p) / math.sqrt(p * (1 - p))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_element_is_lost_at_the_rate(p: float) -> None:
    """Over all, over each image and over each place: with the spread that independent draws have."""
    (gone,) = lost(p, torch.arange(2048), 1024)
    score = scores(p, gone)
    assert abs(float(score.sum()) / 2048**0.5 / 1024**0.5) < 4
    assert float((score.sum(0) / 2048**0.5).var()) == pytest.approx(1, abs=0.25)
    assert float((score.sum(1) / 1024**0.5).var()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_places_images_and_layers_are_independent(p: float) -> None:
    """Products of two of a mask's elements, of two images', of two layers', of neighbours and of four in a row average out."""
    first, second = (scores(p, gone) for gone in lost(p, torch.arange(1024), 512, layers=2))
    products = {
        "places": (first.t() @ first / 32).triu(1),
        "images": (first @ first.t() / 512**0.5).triu(1),
        "layers": first * second,
        "neighbours": first[:, 1:] * first[:, :-1],
        "fours": first.view(1024, 128, 4).prod(2),
    }
    for name, product in products.items():
        values = product[product != 0]
        assert abs(float(values.sum()) / len(values) ** 0.5) < 4.5, name
        assert float(values.var()) == pytest.approx(1, abs=0.35 if name == "fours" else 0.1), name


def test_what_is_kept_keeps_the_mean() -> None:
    """It is multiplied by 1 / (1 - p), in bf16 after rounding as before; gradients are those of that."""
    layer, x = Dropout(0.1), torch.full((4, 2000), 3.0, requires_grad=True)
    key_dropout(layer, Draw(Stream.of(0), torch.arange(4)))
    out = layer(x)
    assert set(out.flatten().tolist()) == {0.0, float(torch.tensor(3.0) * (1 / 0.9))}
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach() / 3)
    assert torch.equal(layer(x.bfloat16()), (out != 0) * (torch.tensor(3.0) / 0.9).bfloat16())


def test_an_image_loses_the_same_in_any_batch() -> None:
    """Whatever comes with it, in whatever order; another image loses other elements, and another stream, too."""
    (all_of_them,) = lost(0.5, torch.tensor([2**40, 7, 3]), 64)
    (alone,) = lost(0.5, torch.tensor([3]), 64)
    assert torch.equal(all_of_them[2:], alone)
    assert not torch.equal(all_of_them[1], all_of_them[2])
    layer = Dropout(0.5)
    key_dropout(layer, Draw(Stream.of(1, "dropout"), torch.tensor([3])))
    assert not torch.equal(layer(torch.ones(1, 64)) == 0, alone)


def test_memory_layout_and_precision_change_nothing() -> None:
    """A pixel's channel is the same element in both layouts and every dtype."""
    layer, x = Dropout(0.5), torch.ones(2, 6, 4, 5)
    key_dropout(layer, Draw(Stream.of(0), torch.arange(2)))
    plain = layer(x)
    turned = layer(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(plain, turned)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, layer(x.double()).float())
    assert torch.equal(plain, layer(x.bfloat16()).float())


def test_out_of_training_nothing_is_lost() -> None:
    """Nor at rate 0."""
    x = torch.ones(2, 8)
    for layer in (Dropout(0.5).eval(), Dropout(0.0)):
        key_dropout(layer, Draw(Stream.of(0), torch.arange(2)))
        assert layer(x) is x


def test_without_keys_torchs_generator_decides() -> None:
    """For loops that know nothing of it."""
    x = torch.ones(4, 100)
    torch.manual_seed(5)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(Dropout(0.3)(x), expected)


def test_keys_are_no_state() -> None:
    """A network with dropout saves, loads and averages as one without."""
    layer = Dropout(0.5)
    key_dropout(layer, Draw(Stream.of(0), torch.arange(2)))
    assert not layer.state_dict()
    assert not list(layer.buffers())
    assert repr(layer) == "Dropout(p=0.5)"
