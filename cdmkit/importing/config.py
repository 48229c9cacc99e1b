"""config.json of diffusers' UNet2DModel, and the network that it makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

_ATTENDS = {
    "DownBlock2D": False,
    "ResnetDownsampleBlock2D": False,
    "AttnDownBlock2D": True,
    "UpBlock2D": False,
    "ResnetUpsampleBlock2D": False,
    "AttnUpBlock2D": True,
}
"""The blocks that can be imported, and whether they have attention."""

_RESIDUAL = {"ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"}


def only(key: str, value: object, *allowed: object) -> None:
    """Raise ValueError unless a setting is one of those that cdmkit has something for."""
    if value not in allowed:
        raise ValueError(f"{key} = {json.dumps(value)}: cdmkit has only {' and '.join(map(json.dumps, allowed))}")


@attrs.frozen(kw_only=True)
class Model:
    """config.json of a UNet2DModel, with its defaults."""

    sample_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def table(self, learned: bool) -> dict[str, Any]:
        """Resolution and network of the stage. Raises ValueError, naming the key that cdmkit has nothing for.

        learned: whether the scheduler takes variances from the network.
        """
        self._check(learned)
        first = self.block_out_channels[0]
        if first < 1 or any(channels % first for channels in self.block_out_channels):
            raise ValueError(f"block_out_channels = {list(self.block_out_channels)} are no whole multiples of the first")
        residual = self._residual()
        network = {
            "type": "unet",
            "channels": first,
            "multipliers": [channels // first for channels in self.block_out_channels],
            "blocks": self.layers_per_block,
            "attention": self._attention(),
            "middle_attention": self.add_attention,
            **({"heads": 1} if self.attention_head_dim is None else {"head_channels": self.attention_head_dim}),
            "dropout": self.dropout,
            "scale_shift": self.resnet_time_scale_shift == "scale_shift",
            "resample": "residual" if residual else "conv",
            "downsample_padding": "both" if self.downsample_padding or residual else "end",
            "frequency_shift": self.freq_shift,
            "norm_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
        }
        return {"resolution": self.sample_size, "backbone": network}

    def _check(self, learned: bool) -> None:
        if self.sample_size is None:
            raise ValueError("sample_size is missing: a stage has one resolution")
        only("in_channels", self.in_channels, 3)
        only("out_channels", self.out_channels, 6 if learned else 3)
        only("center_input_sample", self.center_input_sample, False)
        only("time_embedding_type", self.time_embedding_type, "positional")
        only("freq_shift", self.freq_shift, 0, 1)
        only("mid_block_type", self.mid_block_type, "UNetMidBlock2D")
        only("mid_block_scale_factor", self.mid_block_scale_factor, 1.0)
        only("downsample_padding", self.downsample_padding, 0, 1)
        only("act_fn", self.act_fn, "silu", "swish")
        only("resnet_time_scale_shift", self.resnet_time_scale_shift, "default", "scale_shift")
        only("class_embed_type", self.class_embed_type, None)
        if not self.block_out_channels or not len(self.block_out_channels) == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError("block_out_channels, down_block_types and up_block_types must be of one length, from 1")
        only("time_embedding_dim", self.time_embedding_dim, None, 4 * self.block_out_channels[0])
        if self.add_attention:
            plain = self.norm_num_groups if self.resnet_time_scale_shift == "default" else None
            groups = plain if self.attn_norm_num_groups is None else self.attn_norm_num_groups
            only("attn_norm_num_groups (of the attention in the middle)", groups, self.norm_num_groups)

    def _attention(self) -> list[int]:
        """The resolutions with attention, on both ways alike."""
        down, up = ([_attends(key, name) for name in names] for key, names in self._types())
        if down != up:
            raise ValueError(
                f"up_block_types = {list(self.up_block_types)}: attention on the way up must be at the resolutions of that down"
            )
        return [(self.sample_size or 0) >> level for level, attends in enumerate(down) if attends]

    def _types(self) -> Iterator[tuple[str, list[str]]]:
        """The blocks of each way, full resolution first, without the prefix of the first versions."""
        for key, names in (("down_block_types", self.down_block_types), ("up_block_types", self.up_block_types[::-1])):
            yield key, [name.removeprefix("UNetRes") for name in names]

    def _residual(self) -> bool:
        """Whether residual blocks halve and double the resolution: all, or none. No block does on the way up at full resolution."""
        (_, down), (_, up) = self._types()
        kinds = {_residual(name, self.downsample_type) for name in down[:-1]} | {_residual(name, self.upsample_type) for name in up[1:]}
        if len(kinds) > 1:
            raise ValueError(
                "down_block_types, up_block_types, downsample_type, upsample_type: residual blocks must change every resolution, or none"
            )
        return True in kinds


def _attends(key: str, name: str) -> bool:
    if name not in _ATTENDS or ("Down" in name) != (key == "down_block_types"):
        raise ValueError(
            f"{key}: {name} cannot be imported, only {', '.join(known for known in _ATTENDS if ('Down' in known) == ('down' in key))}"
        )
    return _ATTENDS[name]


def _residual(name: str, attending: str) -> bool:
    """Whether a block resamples in a residual block. attending: how blocks with attention do."""
    if not _ATTENDS.get(name):
        return name in _RESIDUAL
    only("downsample_type or upsample_type", attending, "conv", "resnet")
    return attending == "resnet"
