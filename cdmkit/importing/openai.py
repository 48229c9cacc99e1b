"""Weights of OpenAI's improved-diffusion and guided-diffusion (Improved DDPM, arXiv:2102.09672; ADM, arXiv:2105.05233)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cdmkit.errors import UsageError
from cdmkit.importing.flags import Code, Flags, parse, whole_numbers
from cdmkit.importing.published import Dialect, Published, as_it_is
from cdmkit.importing.revealing import hint
from cdmkit.importing.tensors import read_tensors
from cdmkit.nearest import did_you_mean

DIALECT = Dialect(
    modules={
        "embedding.noise.0": "time_embed.0",
        "embedding.noise.2": "time_embed.2",
        "embedding.label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "down block": "input_blocks.{next}.{slot}",
        "down attention": "input_blocks.{next}.{slot}",
        "down resample": "input_blocks.{next}.{slot}",
        "middle block": "middle_block.{twice}",
        "middle attention": "middle_block.1",
        "up block": "output_blocks.{step}.{slot}",
        "up attention": "output_blocks.{step}.{slot}",
        "up resample": "output_blocks.{step}.{slot}",
        "norm": "out.0",
        "conv_out": "out.2",
    },
    parts={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
        "norm": "norm",
        "qkv": "qkv",
        "out": "proj_out",
        "conv": "conv",
        "": "op",
    },
)

_STEPS = 250
"""Timesteps visited where the flags do not say: what both papers sample with."""


def read(path: Path, text: str, code: Code) -> Published:
    """A state dict, as `code` saves it, and the flags that its scripts are given for it.

    Raises UsageError where the flags are wrong or ask for what cdmkit has not, and CheckpointError where the file holds no tensors.
    """
    tensors = read_tensors(path)
    first = tensors.get("input_blocks.0.0.weight")
    enlarges = any(f"--{size}_size" in text for size in ("large", "small")) or (first is not None and first.shape[1:2] == (6,))
    flags = parse(text, code, enlarges)
    classes = len(tensors.get("label_emb.weight", range(1000))) if flags.class_cond else 0
    table = stage(flags, code, enlarges)
    return Published(
        source=str(path),
        stage=table,
        tensors=tensors,
        dialect=DIALECT,
        adjust=as_it_is if flags.use_new_attention_order else partial(_split_before_heads, flags),
        fault=UsageError,
        data={"fingerprint": "", "downsample": "area", "classes": classes},
        origin={"code": f"openai/{code.name}", "file": path.name, "flags": text},
        hint=hint(tensors, table, classes),
    )


def stage(flags: Flags, code: Code, enlarges: bool) -> dict[str, Any]:
    """The table of the stage that the flags make there."""
    resolution = flags.large_size if enlarges else flags.image_size
    shape = {"resolution": resolution, "low_res": flags.small_size, "upsample": "bilinear"} if enlarges else {"resolution": resolution}
    widths = _widths(flags, resolution, code.enlarging_widths if enlarges else code.widths)
    variance = "learned-range" if flags.learn_sigma else "fixed-small" if flags.sigma_small else "fixed-large"
    return {
        **shape,
        "schedule": {"type": _schedule(flags), "timesteps": flags.diffusion_steps},
        "prediction": "x0" if flags.predict_xstart else "epsilon",
        "variance": variance,
        "noise_input": "timestep-of-1000" if flags.rescale_timesteps else "timestep-from-0",
        "loss": _loss(flags),
        "sampler": _sampler(flags),
        "threshold": {"type": "static" if flags.clip_denoised else "none"},
        "backbone": {
            "type": "unet",
            "channels": flags.num_channels,
            "multipliers": widths,
            "blocks": flags.num_res_blocks,
            "attention": _attention(flags, resolution, len(widths)),
            **_heads(flags),
            "dropout": flags.dropout,
            "scale_shift": flags.use_scale_shift_norm,
            "resample": "residual" if flags.resblock_updown else "conv",
            "checkpoint": flags.use_checkpoint,
        },
    }


def _widths(flags: Flags, resolution: int, known: Mapping[int, tuple[float, ...]]) -> list[int]:
    if flags.channel_mult:
        return whole_numbers("channel_mult", flags.channel_mult)
    if resolution not in known:
        sizes = ", ".join(map(str, sorted(known)))
        raise UsageError(f"--flags: a network for {resolution} x {resolution} pixels: it has them for {sizes}, or with --channel_mult")
    if any(width % 1 for width in known[resolution]):
        raise UsageError(
            f"--flags: --image_size {resolution}: that network begins at half of num_channels, but embeds numbers as if it began at all of "
            "them. cdmkit's unet cannot do that"
        )
    return [int(width) for width in known[resolution]]


def _attention(flags: Flags, resolution: int, levels: int) -> list[int]:
    """The resolutions with attention. The code goes by how often the image is halved, and passes over what no level has."""
    rates = {resolution // named for named in whole_numbers("attention_resolutions", flags.attention_resolutions)}
    return [resolution >> level for level in range(levels) if 2**level in rates]


def _heads(flags: Flags) -> dict[str, int]:
    if flags.num_head_channels != -1:
        return {"head_channels": flags.num_head_channels}
    if flags.num_heads_upsample not in (-1, flags.num_heads):
        raise UsageError(
            f"--flags: --num_heads {flags.num_heads} --num_heads_upsample {flags.num_heads_upsample}: "
            "cdmkit's unet has as many heads on the way up as on the way down"
        )
    return {"heads": flags.num_heads}


def _schedule(flags: Flags) -> str:
    known = ("linear", "cosine")
    if flags.noise_schedule not in known:
        raise UsageError(
            f"--flags: --noise_schedule {flags.noise_schedule}: must be linear or cosine{did_you_mean(flags.noise_schedule, known)}"
        )
    return flags.noise_schedule


def _loss(flags: Flags) -> dict[str, Any]:
    """What it was trained with; a bound is in bits in both."""
    if flags.use_kl:
        return {"type": "vlb"}
    if not flags.learn_sigma:
        return {"type": "simple"}
    return {"type": "hybrid", "vlb_weight": 0.001 if flags.rescale_learned_sigmas else 1 / max(1, flags.diffusion_steps)}


def _sampler(flags: Flags) -> dict[str, Any]:
    """Ancestral, or DDIM where that is asked for, by --use_ddim or by the spacing that is named after it."""
    respacing = flags.timestep_respacing or str(max(1, min(_STEPS, flags.diffusion_steps)))
    strided = respacing.startswith("ddim")
    ddim = flags.use_ddim if "use_ddim" in flags.given else strided
    counts = whole_numbers("timestep_respacing", respacing.removeprefix("ddim"))
    if strided and len(counts) > 1:
        raise UsageError(f"--flags: --timestep_respacing {respacing}: a stride makes one section")
    if 1 in counts and not strided and flags.diffusion_steps > 1:
        raise UsageError(
            f"--flags: --timestep_respacing {respacing}: of a section with one timestep the code visits the cleanest, cdmkit the noisiest"
        )
    made: dict[str, Any] = {"type": "ddim" if ddim else "ancestral", "steps": sum(counts)}
    if strided:
        return {**made, "spacing": {"type": "stride"}}
    return made if len(counts) == 1 else {**made, "spacing": {"type": "sections", "counts": counts}}


def _split_before_heads(flags: Flags, ours: str, tensor: Tensor) -> Tensor:
    """The rows of queries, keys and values from [heads, 3, head channels] to [3, heads, head channels]."""
    if ".qkv." not in ours:
        return tensor
    width = flags.num_head_channels if flags.num_head_channels != -1 else len(tensor) // (3 * flags.num_heads)
    return tensor.reshape(-1, 3, width, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
