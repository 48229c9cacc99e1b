"""What is wrong with a recipe, and where: every fault of it at once."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from cdmkit.errors import CdmkitError, RecipeError, SetupError
from cdmkit.redact import redact

KeyPath = tuple[str | int, ...]
"""The way to a value: keys of tables and indices of lists."""


def dotted(path: KeyPath) -> str:
    """A key path as people write it: `stage.sr64.augment[0].type`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch("[A-Za-z0-9_-]+", part) else f'"{part}"')
    return text


@attrs.frozen
class Origin:
    """Where a value was written: a file, or a `--set` option (which has no lines)."""

    source: str
    line: int = 0
    column: int = 0
    path: KeyPath = ()

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@attrs.frozen
class Problem:
    """Something wrong with the value at a key path."""

    path: KeyPath
    text: str
    setup: bool = False
    """Whether the recipe may be right and a plugin or distribution is what is missing."""


@attrs.frozen
class Fault:
    """A problem and the place in a file that it comes from."""

    origin: Origin
    path: KeyPath
    text: str
    setup: bool = False

    def __str__(self) -> str:
        place = f"{self.origin}: {dotted(self.path)}" if self.path else str(self.origin)
        return f"{place}: {self.text}"


class Faults(CdmkitError):
    """All faults of a recipe, a line each."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(dict.fromkeys(faults), key=_place))
        super().__init__("\n".join(map(str, self.faults)))


class RecipeFaults(Faults, RecipeError):
    """The recipe is at fault."""


class SetupFaults(Faults, SetupError):
    """The recipe needs what is not installed, or does not work, here."""


def failure(faults: Iterable[Fault]) -> Faults:
    """The exception to raise for one or more faults: the recipe's, unless all of them are about what is installed."""
    found = tuple(faults)
    return SetupFaults(found) if all(fault.setup for fault in found) else RecipeFaults(found)


def _place(fault: Fault) -> tuple[bool, str, int, int]:
    """Files before `--set`, each in reading order."""
    return not fault.origin.line, fault.origin.source, fault.origin.line, fault.origin.column


def redacted(text: str, secrets: Iterable[tuple[str, str]] = ()) -> str:
    """`text` without values from the environment (value, what to say instead), and without what `redact` hides."""
    for value, instead in secrets:
        text = text.replace(value, instead)
    return redact(text)
