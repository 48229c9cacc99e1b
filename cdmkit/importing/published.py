"""What a reader finds in other people's files, and the way from their tensors to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from cdmkit.errors import CdmkitError, CheckpointError

_PLACE = re.compile(r"(?P<way>down|middle|up)\.(?P<step>\d+)\.(?P<slot>\d+)\.(?:(?P<part>\w+)\.)?(?P<kind>weight|bias)")
"""A tensor of our U-Net within its layers: the step of a way, the module in it, and the part of that module."""

_OF_ATTENTION = {"norm", "qkv", "out"}
_SHOWN = 5

Adjust = Callable[[str, Tensor], Tensor]
"""(our name, a tensor of theirs) -> the same tensor in our layout."""


@attrs.frozen
class Dialect:
    """What another project calls the tensors of a U-Net like ours."""

    modules: Mapping[str, str]
    """By our module outside the ways, or by way and role ("down block", "up resample"): theirs. It may name the numbers `step`, `slot`,
    `next` (step + 1), `twice` (2 step), `level` and `place` (the step's level on its way, and its place within the level).
    """
    parts: Mapping[str, str]
    """By part of our module ("" for the module itself): theirs. Several, with spaces between, are joined to ours along their rows."""

    def names(self, ours: str, blocks: int) -> list[str]:
        """The tensors of theirs that tensor `ours` is made of. blocks: residual blocks per resolution."""
        found = _PLACE.fullmatch(ours)
        if found is None:
            module, _, kind = ours.rpartition(".")
            return [f"{self.modules[module]}.{kind}"]
        step, slot, part = int(found["step"]), int(found["slot"]), found["part"] or ""
        level, place = divmod(step, blocks + 1)
        resamples = (found["way"] == "down" and place == blocks) or (found["way"] == "up" and slot > 0)
        role = "attention" if part in _OF_ATTENTION else "resample" if resamples else "block"
        template = self.modules[f"{found['way']} {role}"]
        module = template.format(step=step, slot=slot, next=step + 1, twice=2 * step, level=level, place=place)
        return [f"{module}.{theirs}.{found['kind']}" for theirs in self.parts[part].split()]


def as_it_is(_ours: str, tensor: Tensor) -> Tensor:
    """Where both lay tensors out alike."""
    return tensor


@attrs.frozen(eq=False, kw_only=True)
class Published:
    """A stage that another project trained."""

    source: str
    """Where it is from, for messages."""
    stage: Mapping[str, Any]
    """What its table in a recipe must say, beside `weights` and what cdmkit's defaults say."""
    tensors: Mapping[str, Tensor]
    """Its weights, by their names there."""
    dialect: Dialect
    fault: type[CdmkitError]
    """What to raise where cdmkit has no such stage."""
    data: Mapping[str, Any]
    """What it was trained on, as weights files say it."""
    origin: Mapping[str, Any]
    """Which code it is of and with which settings, for the record."""
    adjust: Adjust = as_it_is
    hint: str = ""
    """Where the tensors do not fit: what else may be wrong."""
    notes: tuple[str, ...] = ()
    """What was assumed, to be told."""


def translate(published: Published, network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights under our names, in our layout, for `network` (which may lie on the meta device).

    Raises CheckpointError, naming their first tensors that differ, where they are not such a network's, or are not finite.
    """
    blocks = int(published.stage["backbone"]["blocks"])
    shapes = {ours: tensor.shape for ours, tensor in network.state_dict().items()}
    names = {ours: published.dialect.names(ours, blocks) for ours in shapes}
    wanted = {name: [shapes[ours][0] // len(each), *shapes[ours][1:]] for ours, each in names.items() for name in each}
    _check(published, wanted)
    made = {}
    for ours, each in names.items():
        parts = [published.tensors[name].reshape(wanted[name]) for name in each]
        tensor = published.adjust(ours, parts[0] if len(parts) == 1 else torch.cat(parts))
        made[ours] = tensor.to(dtype).contiguous()
        if not bool(made[ours].isfinite().all()):
            raise CheckpointError(f"{published.source}: {each[0]} holds NaN or infinity: the file is damaged, or training had failed.")
    return made


def _check(published: Published, wanted: Mapping[str, list[int]]) -> None:
    """Compare shapes; a last size of 1 says nothing, since a layer over pixels may be written as one over vectors."""
    found = {name: list(tensor.shape) for name, tensor in published.tensors.items()}
    differ = [name for name in {**wanted, **found} if _core(wanted.get(name)) != _core(found.get(name))]
    if differ:
        told = (f"{name} is {found.get(name, 'missing')}, and should be {wanted.get(name, 'left out')}" for name in differ[:_SHOWN])
        more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise CheckpointError(f"{published.source} holds another network: {'; '.join(told)}{more}.{published.hint and ' '}{published.hint}")


def _core(shape: list[int] | None) -> list[int] | None:
    """A shape without sizes of 1 at its end."""
    shape = None if shape is None else list(shape)
    while shape and len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape
