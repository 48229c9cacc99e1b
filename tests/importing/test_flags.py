"""Flags of OpenAI's scripts, as their READMEs print them."""

from __future__ import annotations

import attrs
import pytest

from cdmkit.errors import UsageError
from cdmkit.importing.flags import GUIDED, IMPROVED, Code, Flags, parse


def test_flags_have_the_types_of_their_defaults() -> None:
    """As in `--key value`; equal signs and quotes do as well, and the last one wins."""
    found = parse("--image_size 64 --dropout 0.1 --class_cond True --learn_sigma=y --channel_mult '1, 2' --image_size 128", GUIDED, False)
    assert (found.image_size, found.dropout, found.class_cond, found.learn_sigma, found.channel_mult) == (128, 0.1, True, True, "1, 2")
    assert found.given == {"image_size", "dropout", "class_cond", "learn_sigma", "channel_mult"}


@pytest.mark.parametrize(
    ("word", "value"), [("True", True), ("1", True), ("YES", True), ("t", True), ("False", False), ("n", False), ("0", False)]
)
def test_words_for_true_and_false(word: str, value: bool) -> None:
    """All that their scripts take."""
    assert parse(f"--use_kl {word}", GUIDED, False).use_kl is value


def test_negative_numbers_are_values() -> None:
    """As in the default of some."""
    assert parse("--num_heads_upsample -1 --num_head_channels -1", GUIDED, False).num_heads_upsample == -1


def test_the_two_codes_differ_in_their_defaults() -> None:
    """Improved DDPM rescales timesteps and learned variances unless it is told otherwise."""
    guided, improved = parse("", GUIDED, False), parse("", IMPROVED, False)
    differ = {field.name for field in attrs.fields(Flags) if getattr(guided, field.name) != getattr(improved, field.name)}
    assert differ == {"rescale_timesteps", "rescale_learned_sigmas"}
    assert not parse("--rescale_timesteps False", IMPROVED, False).rescale_timesteps


@pytest.mark.parametrize(
    ("text", "code", "enlarges", "words"),
    [
        ("--imagesize 64", GUIDED, False, 'knows no --imagesize for a network that enlarges nothing; did you mean "image_size"?'),
        ("--large_size 64", GUIDED, False, "knows no --large_size"),
        ("--image_size 64", GUIDED, True, 'knows no --image_size for a network that enlarges; did you mean "large_size"?|"small_size"'),
        ("--channel_mult 1,2", GUIDED, True, "knows no --channel_mult"),
        ("--sigma_small True", GUIDED, False, "knows no --sigma_small"),
        ("--num_head_channels 64", IMPROVED, False, "improved-diffusion knows no --num_head_channels"),
        ("--given x", GUIDED, False, "knows no --given"),
        ("--lr 1e-4", GUIDED, False, "knows no --lr"),
        ("64", GUIDED, False, '"64" is no flag: they are written --key value'),
        ("-image_size 64", GUIDED, False, '"-image_size" is no flag'),
        ("--image_size", GUIDED, False, "--image_size has no value"),
        ("--class_cond --learn_sigma True", GUIDED, False, "--class_cond has no value"),
        ("--image_size 64.5", GUIDED, False, "--image_size 64.5: must be a whole number"),
        ("--dropout some", GUIDED, False, "--dropout some: must be a number"),
        ("--class_cond maybe", GUIDED, False, "--class_cond maybe: must be True or False"),
        ("--channel_mult '1,2", GUIDED, False, "No closing quotation"),
    ],
)
def test_what_the_scripts_would_not_take_is_a_usage_error(text: str, code: Code, enlarges: bool, words: str) -> None:
    """With the flag, and the nearest one there is."""
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        parse(text, code, enlarges)
