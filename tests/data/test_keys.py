"""Keys in little memory."""

from __future__ import annotations

import pytest

from cdmkit.data.keys import Keys

SOME = ["a", "train-0000001", "", "é/x.y", "b\udcff", "two\nlines"]


def test_is_a_sequence() -> None:
    """By number from either end, in slices and one after the other."""
    keys = Keys.of(SOME)
    assert (len(keys), list(keys), keys[1:4], keys[-1]) == (6, SOME, SOME[1:4], SOME[-1])
    assert [keys[n] for n in range(6)] == SOME
    assert keys == SOME
    assert keys == Keys.of(SOME)
    assert keys != SOME[:-1]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            keys[outside]


def test_nothing() -> None:
    """No keys at all."""
    assert (len(Keys.of([])), list(Keys.of([]))) == (0, [])


def test_as_it_is_stored() -> None:
    """Its text makes it again; a text without an end is none."""
    assert Keys(Keys.of(SOME).text) == SOME
    with pytest.raises(ValueError, match="no end"):
        Keys(b"a\0b")
