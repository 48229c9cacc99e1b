"""Moving averages of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdmkit.kinds import exponential_decay
from cdmkit.training.ema import Ema

ONE, ZERO = torch.ones(()), torch.zeros(())


def make_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_average_follows_the_weights() -> None:
    """After n steps the average is decay^n w_0 + (1 - decay) sum decay^(n-1-i) w_i."""
    network = nn.Linear(2, 2)
    ema = Ema(network, lambda _step: 0.9)
    expected = network.weight.detach().double().clone()
    for step in range(5):
        with torch.no_grad():
            network.weight += 1 + step
        ema.update(network, step, ONE)
        expected = 0.9 * expected + 0.1 * network.weight.detach().double()
    torch.testing.assert_close(ema.module.get_parameter("weight").double(), expected, rtol=1e-6, atol=1e-6)


def test_the_decay_may_change_from_step_to_step() -> None:
    """It is asked for at the step that is done: 1 keeps the average, 0 takes the weights as they are, to the bit."""
    network = make_network()
    ema = Ema(network, lambda step: 1.0 - step)
    before = [p.clone() for p in ema.module.parameters()]
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    ema.update(network, 0, ONE)
    assert all(torch.equal(one, other) for one, other in zip(before, ema.module.parameters(), strict=True))
    ema.update(network, 1, ONE)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), ema.module.parameters(), strict=True))


def test_ramp_starts_low_and_reaches_the_decay() -> None:
    """With the ramp the decay is (1 + step) / (10 + step), never above `decay`; without it is constant."""
    assert exponential_decay(0.99, True, 0) == pytest.approx(0.1)
    assert exponential_decay(0.99, True, 90) == pytest.approx(0.91)
    assert exponential_decay(0.99, True, 10**6) == 0.99
    assert exponential_decay(0.99, False, 0) == 0.99


def test_nothing_moves_where_told_so() -> None:
    """Moves = 0 leaves every bit of the average's weights."""
    network = make_network()
    ema = Ema(network, lambda _step: 0.5)
    before = {name: p.clone() for name, p in ema.module.named_parameters()}
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    ema.update(network, 0, ZERO)
    assert all(torch.equal(before[name], p) for name, p in ema.module.named_parameters())


def test_buffers_are_copied() -> None:
    """Running statistics are not averaged but copied."""
    network = make_network()
    ema = Ema(network, lambda _step: 0.999)
    network(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    ema.update(network, 0, ONE)
    assert torch.equal(ema.module.get_buffer("1.running_mean"), network.get_buffer("1.running_mean"))
    assert float(network.get_buffer("1.running_mean").abs().sum()) > 0


def test_average_is_a_module_apart() -> None:
    """The average is in eval mode, wants no gradients, and shares no memory with the network."""
    network = make_network().train()
    ema = Ema(network, lambda _step: 0.5)
    assert network.training
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert {p.data_ptr() for p in network.parameters()}.isdisjoint({p.data_ptr() for p in ema.module.parameters()})
