"""The built-in optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.optimizers import Adam, AdamW
from cdmkit.kinds import Optimizer

GRADIENTS = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.1, -4.0]), torch.tensor([-1.0, 0.0, 2.0])]
START = torch.tensor([0.5, -1.0, 2.0])


def stepped(component: Optimizer) -> Tensor:
    """Where the optimizer comes to from START along GRADIENTS."""
    weight = nn.Parameter(START.clone())
    optimizer = component.build([weight])
    for gradient in GRADIENTS:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def adam_by_hand(lr: float, beta1: float, beta2: float, eps: float, decay: float = 0.0) -> Tensor:
    """Algorithm 1 of Adam and Algorithm 2 of AdamW, in float64."""
    w = START.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = gradient.double()
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g.square()
        w = w - lr * decay * w - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
    return w.float()


def test_adam_is_the_papers() -> None:
    """Every option has the meaning it has in the paper."""
    options = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
    torch.testing.assert_close(stepped(Adam(**options)), adam_by_hand(**options))


def test_adamw_is_the_papers() -> None:
    """The weight decay is decoupled from the gradient."""
    options = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
    torch.testing.assert_close(stepped(AdamW(**options, weight_decay=0.3)), adam_by_hand(**options, decay=0.3))


@pytest.mark.parametrize("component", [Adam(), AdamW()])
def test_optimizers_are_fused(component: Optimizer) -> None:
    """On a CPU the fused kernels are used, which also skip steps on the device."""
    assert component.build([nn.Parameter(START.clone())]).defaults["fused"] is True


@pytest.mark.parametrize("component", [Adam(), AdamW()])
def test_found_inf_keeps_everything(component: Optimizer) -> None:
    """Where `found_inf` is 1 a fused step changes neither weights nor state: what training relies on to skip bad steps."""
    weight = nn.Parameter(START.clone())
    optimizer = component.build([weight])
    weight.grad = GRADIENTS[0].clone()
    optimizer.step()
    before = {"weight": weight.detach().clone(), **{slot: t.clone() for slot, t in optimizer.state[weight].items()}}
    weight.grad = torch.full((3,), float("nan"))
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    after = {"weight": weight.detach(), **optimizer.state[weight]}
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("option", [{"lr": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}])
def test_options_out_of_range_are_refused(option: dict[str, float]) -> None:
    """Values that no optimizer can work with are refused with their range."""
    with pytest.raises(ValueError, match="out of range"):
        Adam(**option)
