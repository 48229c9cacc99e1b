"""Layers in their quickest form: the same values and gradients as by the plain formulas, in less memory, and rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cdmkit.builtin.layers import Norm, attend, double_and_convolve

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def awake_norm(silu: bool) -> Norm:
    """8 channels in 4 groups."""
    norm = Norm(4, 8, 1e-3, silu=silu).double()
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(random(8, seed=seed))
    return norm


def plain_norm(norm: Norm, x: Tensor, told: Tensor | None) -> Tensor:
    """One after the other, by torch's layers, in float64."""
    h = F.group_norm(x.double(), norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    if told is not None:
        scale, shift = told.double()[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return F.silu(h) if norm.silu else h


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_norm_scales_shifts_and_activates(silu: bool, tells: bool, layout: torch.memory_format) -> None:
    """As group norm, AdaGN and SiLU do one after the other; its gradients, too."""
    norm, x = awake_norm(silu), random(3, 8, 5, 3).detach().contiguous(memory_format=layout).requires_grad_()
    told = random(3, 16, seed=1) if tells else None
    given = [x, *norm.parameters(), *([] if told is None else [told])]
    out, expected = norm(x, told), plain_norm(norm, x, told)
    torch.testing.assert_close(out, expected)
    of_out = random(*out.shape, seed=2).detach()
    for mine, theirs in zip(torch.autograd.grad(out, given, of_out), torch.autograd.grad(expected, given, of_out), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_norm_leaves_images_in_their_layout(layout: torch.memory_format) -> None:
    """So that convolutions after it need not turn them round; gradients, too."""
    x = random(2, 8, 4, 4).detach().contiguous(memory_format=layout).requires_grad_()
    out = awake_norm(True)(x)
    (of_x,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert out.is_contiguous(memory_format=layout)
    assert of_x.is_contiguous(memory_format=layout)


def test_a_norm_in_bf16_is_rounded_once() -> None:
    """Far from 0, too: what comes is within half a unit of its last place of the float64 result for the same input, gradients within a unit
    of the largest. Three layers one after the other round three times, and are off by more.
    """
    norm, x, told = awake_norm(True), (30 + random(4, 8, 16, 16).detach()).bfloat16().requires_grad_(), random(4, 16, seed=1)
    single = Norm(4, 8, 1e-3, silu=True)
    single.load_state_dict(norm.state_dict())
    out, expected = single(x, told.float()), plain_norm(norm, x, told)
    assert out.dtype == torch.bfloat16
    assert bool(((out.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-4).all())
    of_out = random(*out.shape, seed=2).detach().bfloat16()
    (mine,), (exact,) = torch.autograd.grad(out, x, of_out), torch.autograd.grad(expected, x, of_out.double())
    assert float((mine.double() - exact.double()).abs().max()) <= 2**-8 * float(exact.abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        scale, shift = told.bfloat16()[:, :, None, None].chunk(2, dim=1)
        rough = F.silu(torch.addcmul(shift, F.group_norm(x, 4, single.weight, single.bias, 1e-3), 1 + scale))
    assert bool(((rough.double() - expected).abs() > 2**-8 * expected.abs() + 1e-4).any())


def test_a_norm_keeps_its_input_alone() -> None:
    """And a few numbers for each channel: a third of the bytes that the three layers keep."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    norm, x, told = awake_norm(True), random(2, 8, 32, 32), random(2, 16)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x, told)
    assert sum(kept.values()) < 1.05 * x.untyped_storage().nbytes()


@pytest.mark.parametrize(("tokens", "dtype"), [(6, torch.bfloat16), (300, torch.bfloat16), (6, torch.float64)])
def test_attention_is_a_softmax_over_tokens(tokens: int, dtype: torch.dtype) -> None:
    """In each way of computing it; in bf16 within its rounding of values and gradients of about 1."""
    q, k, v = (random(2, 3, tokens, 4, seed=seed, dtype=dtype) for seed in range(3))
    exact = [each.detach().double().requires_grad_() for each in (q, k, v)]
    expected = torch.softmax(exact[0] @ exact[1].transpose(2, 3) / 2, dim=3) @ exact[2]
    out = attend(q, k, v)
    assert (out.dtype, out.shape) == (dtype, q.shape)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-9
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    of_out = random(*out.shape, seed=3, dtype=dtype).detach()
    found, right = torch.autograd.grad(out, (q, k, v), of_out), torch.autograd.grad(expected, exact, of_out.double())
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=3 * tolerance)


@pytest.mark.parametrize(("batch", "side"), [(1, 5), (8, 6), (1, 16)], ids=["a few pixels", "many images", "a large image"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_repeated_before_a_convolution(batch: int, side: int, layout: torch.memory_format) -> None:
    """Values and gradients are those of nearest neighbours and then a convolution, in one go or in two; sides may differ."""
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    x = random(batch, 4, side, side + 1).detach().contiguous(memory_format=layout).requires_grad_()
    out, expected = double_and_convolve(x, conv), conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(out, expected)
    of_out, given = random(*out.shape, seed=1).detach(), (x, *conv.parameters())
    for mine, theirs in zip(torch.autograd.grad(out, given, of_out), torch.autograd.grad(expected, given, of_out), strict=True):
        torch.testing.assert_close(mine, theirs)


@torch.no_grad()
def test_the_kernel_of_many_pixels_is_made_in_float32() -> None:
    """Under autocast, too: it is rounded to bf16 once, as a sum, so that the error is that of the usual bf16 products, within a tenth."""
    conv, x = nn.Conv2d(8, 8, 3, padding=1), random(4, 8, 16, 16, dtype=torch.float32).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed, usual = double_and_convolve(x, conv), conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    exact = conv.double()(x.double().repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert mixed.dtype == torch.bfloat16
    assert float((mixed.double() - exact).norm()) < 1.1 * float((usual.double() - exact).norm())
