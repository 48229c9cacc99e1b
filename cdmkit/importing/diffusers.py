"""Weights of diffusers' UNet2DModel: the family of DDPM (arXiv:2006.11239), as its pipelines are saved."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cdmkit.catalog import Catalog
from cdmkit.errors import CheckpointError
from cdmkit.importing.config import Model
from cdmkit.importing.published import Dialect, Published, as_it_is
from cdmkit.importing.scheduler import Scheduler
from cdmkit.importing.tensors import read_tensors
from cdmkit.recipe import dotted
from cdmkit.recipe.structure import structure

T = TypeVar("T")

DIALECT = Dialect(
    modules={
        "embedding.noise.0": "time_embedding.linear_1",
        "embedding.noise.2": "time_embedding.linear_2",
        "embedding.label": "class_embedding",
        "conv_in": "conv_in",
        "down block": "down_blocks.{level}.resnets.{place}",
        "down attention": "down_blocks.{level}.attentions.{place}",
        "down resample": "down_blocks.{level}.downsamplers.0",
        "middle block": "mid_block.resnets.{step}",
        "middle attention": "mid_block.attentions.0",
        "up block": "up_blocks.{level}.resnets.{place}",
        "up attention": "up_blocks.{level}.attentions.{place}",
        "up resample": "up_blocks.{level}.upsamplers.0",
        "norm": "conv_norm_out",
        "conv_out": "conv_out",
    },
    parts={
        "norm1": "norm1",
        "conv1": "conv1",
        "emb_proj": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "conv_shortcut",
        "norm": "group_norm",
        "qkv": "to_q to_k to_v",
        "out": "to_out.0",
        "conv": "conv",
        "": "conv",
    },
)

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What attention was called by its first versions."""

FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def read(folder: Path, catalog: Catalog) -> Published:
    """A model's folder, or that of a pipeline with `unet` and `scheduler` in it.

    Raises CheckpointError, naming file and key, where something is missing, damaged, or nothing that cdmkit has.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: diffusers saves a model as config.json and {FILES[0]}, in one.")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" / "scheduler_config.json"
    model, _ = _settings(unet / "config.json", Model, ("UNet2DModel",), catalog)
    chain, name = Scheduler(), "DDPMScheduler"
    if scheduler.parent.is_dir():
        chain, name = _settings(scheduler, Scheduler, ("DDPMScheduler", "DDIMScheduler"), catalog)
    with _blamed(scheduler):
        stage = chain.table(name == "DDIMScheduler")
    with _blamed(unet / "config.json"):
        stage |= model.table(chain.learned)
    weights = next((unet / name for name in FILES if (unet / name).exists()), None)
    if weights is None:
        raise CheckpointError(f"{unet} holds no weights: neither {' nor '.join(FILES)}.")
    return Published(
        source=str(weights),
        stage=stage,
        tensors={_modern(name): tensor for name, tensor in read_tensors(weights).items()},
        dialect=DIALECT,
        adjust=as_it_is if model.flip_sin_to_cos else _cosines_first,
        fault=CheckpointError,
        data={"fingerprint": "", "classes": model.num_class_embeds or 0},
        origin={"code": "huggingface/diffusers", "folder": folder.resolve().name},
        hint=f"{unet / 'config.json'} is of another one.",
        notes=() if scheduler.parent.is_dir() else (_ASSUMED.format(folder=folder),),
    )


_ASSUMED = (
    "{folder} has no scheduler beside the network: DDPM's is assumed (linear, 1000 timesteps, epsilon, fixed-small). "
    "If it was trained with another, import the folder of the pipeline."
)


def _settings(path: Path, cls: type[T], names: tuple[str, ...], catalog: Catalog) -> tuple[T, str]:
    """A file of settings, strictly read, and the class that it is of. Other keys that begin with an underscore are notes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} is no table of settings.")
    name = found.get("_class_name", names[0])
    if name not in names:
        raise CheckpointError(f"{path}: _class_name = {name}: only {' and '.join(names)} can be imported.")
    made = structure({key: value for key, value in found.items() if not key.startswith("_")}, cls, catalog)
    if isinstance(made, list):
        raise CheckpointError("\n".join(f"{path}: {dotted(problem.path)}: {problem.text}" for problem in made))
    return made, name


@contextlib.contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Name the file that a wrong setting is in."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _modern(name: str) -> str:
    """A tensor's name as newer versions say it."""
    module, _, kind = name.rpartition(".")
    head, _, part = module.rpartition(".")
    return f"{head}.{_OLD[part]}.{kind}" if part in _OLD and ".attentions." in name else name


def _cosines_first(ours: str, tensor: Tensor) -> Tensor:
    """The columns of the layer that takes in the embedded timestep, where sines come first there."""
    return torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1) if ours == "embedding.noise.0.weight" else tensor
