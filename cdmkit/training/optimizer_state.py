"""The state of any torch optimizer as named tensors and JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdmkit.errors import CheckpointError
from cdmkit.training.tensor_file import copy_into, outlines


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
    """Give an optimizer back what `flatten` took, a tensor at a time.

    Raises CheckpointError where it was taken from an optimizer of another network.
    """
    parameters = dict(network.named_parameters())
    index_of = {name: index for index, name in enumerate(_names(optimizer, network))}
    slots = {key: key.rpartition(".") for key in (*tensors, *rest["numbers"])}
    if strange := [name for name, _, _ in slots.values() if name not in index_of]:
        raise CheckpointError(
            f"the optimizer's state is of another network: there is no parameter {strange[0]!r}. Use the recipe it was trained with."
        )
    groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(rest["groups"]):
        raise CheckpointError(f"the optimizer's state has {len(rest['groups'])} groups of parameters, this optimizer has {len(groups)}.")
    state: dict[int, dict[str, Any]] = {}
    outline = outlines(tensors)
    for key, (name, _, slot) in slots.items():
        value = _laid_out(tensors, key, outline[key], parameters[name]) if key in outline else rest["numbers"][key]
        state.setdefault(index_of[name], {})[slot] = value
    merged = [{**group, **saved} for group, saved in zip(groups, rest["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _laid_out(tensors: Mapping[str, Tensor], key: str, outline: Tensor, parameter: nn.Parameter) -> Tensor:
    """A tensor in its parameter's memory layout: fused kernels walk both as they lie, so another layout would mix up the elements."""
    if outline.shape != parameter.shape:
        return tensors[key]
    made = torch.empty_like(parameter, dtype=outline.dtype, requires_grad=False)
    copy_into(made, tensors, key)
    return made


def _names(optimizer: Optimizer, network: nn.Module) -> list[str]:
    """The names of the optimizer's parameters in the order its state dict numbers them."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
