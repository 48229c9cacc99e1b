"""Small networks of every published kind, and weights for them that anyone can make again: what tests and benchmarks/parity.py share."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_RANGED = "--learn_sigma True --class_cond True"

OPENAI: dict[str, tuple[str, str]] = {
    "DDPM": (
        "guided-diffusion",
        "--image_size 16 --channel_mult 1,2 --num_channels 32 --num_res_blocks 2 --num_heads 1 --attention_resolutions 8 "
        "--use_scale_shift_norm False",
    ),
    "Improved DDPM": (
        "guided-diffusion",
        f"--image_size 16 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1 --num_heads 4 --attention_resolutions 16,8 {_RANGED} "
        "--noise_schedule cosine --rescale_timesteps True --rescale_learned_sigmas True",
    ),
    "ADM 64x64": (
        "guided-diffusion",
        f"--image_size 16 --channel_mult 1,2,3 --num_channels 32 --num_res_blocks 1 --num_head_channels 16 --attention_resolutions 8,4 "
        f"{_RANGED} --noise_schedule cosine --resblock_updown True --use_new_attention_order True --use_fp16 False --dropout 0.1",
    ),
    "ADM 128x128": (
        "guided-diffusion",
        "--image_size 16 --channel_mult 1,1,2 --num_channels 64 --num_res_blocks 1 --num_heads 4 --attention_resolutions 8,4 "
        "--learn_sigma True --resblock_updown True --predict_xstart True",
    ),
    "ADM upsampler": (
        "guided-diffusion",
        f"--large_size 64 --small_size 16 --num_channels 32 --num_res_blocks 1 --num_heads 4 --attention_resolutions 16 {_RANGED} "
        "--resblock_updown True",
    ),
    "Improved DDPM 32x32": (
        "improved-diffusion",
        f"--image_size 32 --num_channels 32 --num_res_blocks 1 --num_heads_upsample 4 --attention_resolutions 8 {_RANGED} "
        "--noise_schedule cosine --diffusion_steps 500",
    ),
}
"""Origin and flags of networks of OpenAI's code, by what they are like."""

_SMALL: dict[str, Any] = {"_class_name": "UNet2DModel", "sample_size": 16, "layers_per_block": 1, "block_out_channels": [32, 64]}

DIFFUSERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "diffusers DDPM": (
        {
            **_SMALL,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"},
    ),
    "diffusers scale-shift": (
        {
            **_SMALL,
            "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 16,
            "norm_num_groups": 16,
            "attention_head_dim": 16,
            "out_channels": 6,
            "num_class_embeds": 5,
        },
        {
            "_class_name": "DDPMScheduler",
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "learned_range",
            "prediction_type": "v_prediction",
        },
    ),
    "diffusers without attention": (
        {
            **_SMALL,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "add_attention": False,
        },
        {"_class_name": "DDIMScheduler", "beta_start": 0.0002, "beta_end": 0.03, "num_train_timesteps": 500, "clip_sample": False},
    ),
}
"""config.json and scheduler_config.json of networks of diffusers, by what they are like."""

LEVELS = (3.0, 700.5)
"""Noise levels that networks are asked at, one for each image of a batch."""

INDEX = 21
"""Where on a chain of 50 points a step is compared, from 1."""

_MODULUS = 10_007


def filled(name: str, shape: Sequence[int]) -> Tensor:
    """Numbers in [-1, 1) that follow from a name and their place alone, exactly on every machine: float64."""
    place = torch.arange(int(torch.tensor(shape).prod()))
    residue = (place * place * 7919 + place * 104_729 + zlib.crc32(name.encode())) % _MODULUS
    return (residue.double() * (2 / _MODULUS) - 1).reshape(*shape)


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict, float32, at which a network's activations neither vanish nor explode."""
    made = {}
    for name, shape in shapes.items():
        values = filled(name, shape)
        if len(shape) > 1:
            values *= (3 / values[0].numel()) ** 0.5
        else:
            values = 0.2 * values + (1.0 if name.endswith("weight") else 0.0)
        made[name] = values.float()
    return made


def inputs(resolution: int, classes: int, low_res: int | None) -> dict[str, Tensor]:
    """What networks are given, float64: x, levels, and labels and low_res where they are told them."""
    made = {"x": 1.5 * filled("x", (2, 3, resolution, resolution)), "levels": torch.tensor(LEVELS, dtype=torch.float64)}
    if classes:
        made["labels"] = torch.tensor([1, classes - 1])
    if low_res:
        made["low_res"] = filled("low_res", (2, 3, low_res, low_res))
    return made


def sampled(values: Tensor) -> list[float]:
    """Some hundred of a tensor's numbers, evenly, to 12 digits."""
    flat = values.double().flatten()
    return [float(f"{value:.12g}") for value in flat[:: max(1, len(flat) // 160)].tolist()]


def golden(name: str) -> dict[str, Any]:
    """What a case's origin says, as benchmarks/parity.py --golden wrote it down."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))[name]
    return found


def save(folder: Path, name: str) -> Path:
    """A case's files, as its origin saves them, with the weights of the formula."""
    state = weights(golden(name)["tensors"])
    if name in DIFFUSERS:
        return save_folder(folder / "model", *DIFFUSERS[name], state)
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


def options(name: str) -> tuple[str, str | None]:
    """A case's origin, and the flags to give with it."""
    return OPENAI.get(name, ("diffusers", None))


def save_folder(
    folder: Path, config: Mapping[str, Any], scheduler: Mapping[str, Any], state: Mapping[str, Tensor], ending: str = "bin"
) -> Path:
    """A pipeline's folder as diffusers saves it."""
    from safetensors.torch import save_file

    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    path = folder / "unet" / f"diffusion_pytorch_model.{ending}"
    if ending == "bin":
        torch.save(dict(state), path)
    else:
        save_file(dict(state), path)
    return folder
