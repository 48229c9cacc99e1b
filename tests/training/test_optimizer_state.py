"""Saving and restoring optimizers without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, NAdam, Optimizer, Rprop

from cdmkit.builtin.optimizers import Adam, AdamW
from cdmkit.errors import CheckpointError
from cdmkit.training.optimizer_state import flatten, restore

Build = Callable[[Iterable[nn.Parameter]], Optimizer]


def make_network() -> nn.Module:
    """A network in channels-last layout, where a wrong layout of the optimizer's tensors would mix up elements."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    return nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)


def step(network: nn.Module, optimizer: Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    network(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def momentum(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def two_groups(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The last parameters first, as an optimizer that decays weights but not biases has them."""
    several = list(parameters)
    groups: list[dict[str, Any]] = [{"params": several[2:], "weight_decay": 0.0}, {"params": several[:2]}]
    return torch.optim.AdamW(groups, lr=0.1)


@pytest.mark.parametrize("build", [Adam(lr=0.1).build, AdamW(lr=0.1).build, momentum, two_groups, NAdam, Adagrad, Rprop])
def test_restored_optimizer_goes_on_bit_for_bit(build: Build) -> None:
    """Steps after a restore give the same bits as steps without one."""
    network = make_network()
    optimizer = build(network.parameters())
    for seed in range(3):
        step(network, optimizer, seed)
    tensors, rest = flatten(optimizer, network)
    copies = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}

    twin = make_network()
    twin.load_state_dict(network.state_dict())
    restored = build(twin.parameters())
    restore(restored, twin, copies, json.loads(json.dumps(rest)))
    for seed in range(3, 6):
        step(network, optimizer, seed)
        step(twin, restored, seed)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))


def test_tensors_are_named_after_parameters() -> None:
    """Adam's state is addressed as <parameter>.<slot>."""
    network = make_network()
    optimizer = Adam().build(network.parameters())
    step(network, optimizer, 0)
    tensors, _ = flatten(optimizer, network)
    assert set(tensors) == {f"{name}.{slot}" for name, _ in network.named_parameters() for slot in ("step", "exp_avg", "exp_avg_sq")}


def test_state_of_another_network_is_refused() -> None:
    """State that names unknown parameters is a CheckpointError with the name."""
    network = make_network()
    optimizer = Adam().build(network.parameters())
    step(network, optimizer, 0)
    tensors, rest = flatten(optimizer, network)
    other = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"no parameter '0\.weight'"):
        restore(Adam().build(other.parameters()), other, tensors, rest)


def test_unsavable_state_is_refused() -> None:
    """An optimizer that keeps an object gets a CheckpointError instead of a checkpoint that cannot be restored."""
    network = make_network()
    optimizer = momentum(network.parameters())
    optimizer.param_groups[0]["odd"] = object()
    with pytest.raises(CheckpointError, match="SGD keeps state that cannot be saved"):
        flatten(optimizer, network)
