"""The nearest valid name to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, or None where none is similar."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(words), n=1)), None)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """'; did you mean "x"?' to end a message with, or nothing where no word is similar."""
    near = nearest(word, words)
    return f'; did you mean "{near}"?' if near else ""
