"""What the tensors of an OpenAI network tell of the flags that it was made with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_UP = re.compile(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.0)\.weight")
"""The first tensor of what doubles the resolution, at the last step of a level."""


def hint(tensors: Mapping[str, Tensor], stage: Mapping[str, Any], classes: int) -> str:
    """Which flags contradict the tensors, in words; empty where none does. Heads and the order of their rows cannot be told.

    stage, classes: what the flags make, as a recipe would say it.
    """
    if "time_embed.0.weight" not in tensors:
        return "Its tensors are not named as those of a diffusion network of that code are."
    if not any(name.startswith("output_blocks.") for name in tensors):
        return "It has no way up: is it a classifier? Those are not imported."
    wrong = [words for words, right in _claims(tensors, stage, classes) if not right]
    return f"By its tensors it was made with {', '.join(wrong)}." if wrong else ""


def _claims(tensors: Mapping[str, Tensor], stage: Mapping[str, Any], classes: int) -> Iterator[tuple[str, bool]]:
    """What the tensors say, as flags, each with whether the stage agrees."""
    network, first = stage["backbone"], "input_blocks.1.0"
    width = _size(tensors, "time_embed.0.weight", 1)
    learned = _size(tensors, "out.2.bias", 0) == 6
    scales = _size(tensors, f"{first}.emb_layers.1.bias", 0) == 2 * _size(tensors, f"{first}.out_layers.0.bias", 0)
    doubled = [int(found[1]) for name in tensors if (found := _UP.fullmatch(name))]
    residual = not any(name.endswith(".op.weight") for name in tensors)
    enlarges = _size(tensors, "input_blocks.0.0.weight", 1) == 6
    yield f"--num_channels {width}", width == network["channels"]
    yield f"--learn_sigma {learned}", learned == (stage["variance"] == "learned-range")
    yield f"--class_cond {'label_emb.weight' in tensors}", ("label_emb.weight" in tensors) == bool(classes)
    yield f"--use_scale_shift_norm {scales}", scales == network["scale_shift"]
    yield f"--resblock_updown {residual}", not doubled or residual == (network["resample"] == "residual")
    yield f"{'' if enlarges else 'neither '}--large_size {'and' if enlarges else 'nor'} --small_size", enlarges == ("low_res" in stage)
    steps = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"output_blocks\.(\d+)\.", name)))
    blocks = min(doubled, default=steps - 1)
    yield f"--num_res_blocks {blocks}", blocks == network["blocks"]
    if blocks and width and steps % (blocks + 1) == 0:
        levels = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(steps // (blocks + 1))]
        widths = [_size(tensors, f"{level}.0.out_layers.0.bias", 0) / width for level in levels]
        attending = [stage["resolution"] >> level for level, name in enumerate(levels) if f"{name}.1.qkv.weight" in tensors]
        yield f"channels times {_listed(widths)} (by the image size, or --channel_mult)", widths == network["multipliers"]
        yield f"--attention_resolutions {_listed(attending)}", attending == network["attention"]


def _listed(numbers: list[float] | list[int]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _size(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """A size of a tensor; 0 where it has none there."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else 0
