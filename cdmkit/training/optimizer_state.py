"""The state of any torch optimizer as named tensors and JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdmkit.errors import CheckpointError


def flatten(optimizer: Optimizer, network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as "<parameter>.<slot>", such as "conv.weight.exp_avg"; all else as JSON: options of the groups and plain numbers.

    Raises CheckpointError where an optimizer keeps what neither can hold.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    packed = optimizer.state_dict()
    names = _names(optimizer, network)
    for index, slots in packed["state"].items():
        for slot, value in slots.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{names[index]}.{slot}"] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in packed["param_groups"]]
    rest = {"groups": groups, "numbers": numbers}
    try:
        json.dumps(rest, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the optimizer {type(optimizer).__name__} keeps state that cannot be saved: {error}") from error
    return tensors, rest


def restore(optimizer: Optimizer, network: nn.Module, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Give an optimizer back what `flatten` took. Raises CheckpointError where it was taken from an optimizer of another network."""
    parameters = dict(network.named_parameters())
    index_of = {name: index for index, name in enumerate(_names(optimizer, network))}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["numbers"]}.items():
        name, _, slot = key.rpartition(".")
        if name not in index_of:
            raise CheckpointError(
                f"the optimizer's state is of another network: there is no parameter {name!r}. Use the recipe it was trained with."
            )
        state.setdefault(index_of[name], {})[slot] = _laid_out(value, parameters[name])
    groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(rest["groups"]):
        raise CheckpointError(f"the optimizer's state has {len(rest['groups'])} groups of parameters, this optimizer has {len(groups)}.")
    merged = [{**group, **saved} for group, saved in zip(groups, rest["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _laid_out(value: Any, parameter: nn.Parameter) -> Any:
    """A tensor in its parameter's memory layout: fused kernels walk both as they lie, so another layout would mix up the elements."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value


def _names(optimizer: Optimizer, network: nn.Module) -> list[str]:
    """The names of the optimizer's parameters in the order its state dict numbers them."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
