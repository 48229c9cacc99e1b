"""The command lines of OpenAI's improved-diffusion and guided-diffusion: their flags, and what each code takes them to be by default."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from cdmkit.errors import UsageError
from cdmkit.nearest import did_you_mean

_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


@attrs.frozen(kw_only=True)
class Flags:
    """What scripts that sample are told. Defaults are those of guided-diffusion."""

    image_size: int = 64
    large_size: int = 256
    small_size: int = 64
    num_channels: int = 128
    channel_mult: str = ""
    num_res_blocks: int = 2
    attention_resolutions: str = "16,8"
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    dropout: float = 0.0
    class_cond: bool = False
    learn_sigma: bool = False
    sigma_small: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    use_kl: bool = False
    rescale_learned_sigmas: bool = False
    timestep_respacing: str = ""
    use_ddim: bool = False
    clip_denoised: bool = True
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_samples: int = 10_000
    batch_size: int = 16
    model_path: str = ""
    base_samples: str = ""
    given: frozenset[str] = frozenset()
    """Those that were given."""


Widths = Mapping[int, tuple[float, ...]]
"""By image size: channels at each resolution, as multiples of `num_channels`."""

_ENLARGING, _PLAIN = {"large_size", "small_size", "base_samples"}, {"image_size", "channel_mult", "use_new_attention_order", "sigma_small"}


@attrs.frozen(kw_only=True)
class Code:
    """One of the two repositories."""

    name: str
    lacks: frozenset[str]
    """Flags that it does not know."""
    defaults: Mapping[str, Any]
    """Where they differ from those of `Flags`."""
    widths: Widths
    enlarging_widths: Widths

    def known(self, enlarges: bool) -> list[str]:
        """The flags of its script that samples, or of the one that enlarges."""
        unknown = self.lacks | (_PLAIN if enlarges else _ENLARGING) | {"given"}
        return [field.name for field in attrs.fields(Flags) if field.name not in unknown]


_DEEP, _SMALL = (1, 1, 2, 2, 4, 4), (1, 2, 3, 4)

GUIDED = Code(
    name="guided-diffusion",
    lacks=frozenset({"sigma_small"}),
    defaults={},
    widths={64: _SMALL, 128: (1, 1, 2, 3, 4), 256: _DEEP, 512: (0.5, 1, 1, 2, 2, 4, 4)},
    enlarging_widths={64: _SMALL, 256: _DEEP, 512: _DEEP},
)
IMPROVED = Code(
    name="improved-diffusion",
    lacks=frozenset({"num_head_channels", "channel_mult", "resblock_updown", "use_fp16", "use_new_attention_order"}),
    defaults={"rescale_timesteps": True, "rescale_learned_sigmas": True},
    widths={32: (1, 2, 2, 2), 64: _SMALL, 256: _DEEP},
    enlarging_widths={64: _SMALL, 256: _DEEP},
)


def parse(text: str, code: Code, enlarges: bool) -> Flags:
    """Read `--key value --key=value ...` as the scripts do; the last of several wins. Raises UsageError at what they would not take."""
    known = code.known(enlarges)
    values = dict(code.defaults)
    given = {}
    for key, value in _pairs(text):
        if key not in known:
            kind = "a network that enlarges" if enlarges else "a network that enlarges nothing"
            raise UsageError(f"--flags: {code.name} knows no --{key} for {kind}{did_you_mean(key, known)}")
        given[key] = _value(key, value)
    return Flags(**{**values, **given, "given": frozenset(given)})


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--flags: {error}") from error
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UsageError(f'--flags: "{word}" is no flag: they are written --key value, as in --image_size 64')
        if not equals:
            value = next(words, "")
            if not value or value.startswith("--"):
                raise UsageError(f"--flags: --{key} has no value")
        yield key, value


def _value(key: str, text: str) -> Any:
    """A flag's value, of the type of its default."""
    kind: Any = type(attrs.fields_dict(Flags)[key].default)
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise UsageError(f"--flags: --{key} {text}: must be True or False")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError as error:
        raise UsageError(f"--flags: --{key} {text}: must be {'a whole number' if kind is int else 'a number'}") from error


def whole_numbers(key: str, text: str) -> list[int]:
    """A flag's numbers, with commas between. Raises UsageError where one is not a whole number from 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--flags: --{key} {text}: must be whole numbers from 1, with commas between")
    return [int(part) for part in parts]
