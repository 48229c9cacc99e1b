"""Importing published weights: a reader for each origin, one way from their tensors to ours, and one writer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cdmkit.errors import UsageError
from cdmkit.importing import diffusers, openai
from cdmkit.importing.flags import GUIDED, IMPROVED, Code
from cdmkit.importing.published import Published
from cdmkit.importing.writing import write
from cdmkit.nearest import did_you_mean
from cdmkit.plugins import Plugins
from cdmkit.recipe.model import SLUG

__all__ = ["ORIGINS", "Imported", "import_weights"]

Reader = Callable[[Path, str | None, Plugins], Published]
"""(file or folder, the origin's flags if any were given, plugins) -> what is there."""


def _flagged(code: Code) -> Reader:
    return lambda path, flags, _plugins: openai.read(path, flags or "", code)


def _diffusers(path: Path, flags: str | None, plugins: Plugins) -> Published:
    if flags is not None:
        raise UsageError("--flags: diffusers saves its settings beside the weights, there are none to give")
    return diffusers.read(path, plugins.catalog)


ORIGINS: dict[str, Reader] = {
    "guided-diffusion": _flagged(GUIDED),
    "improved-diffusion": _flagged(IMPROVED),
    "diffusers": _diffusers,
}
"""Whose weights can be imported, and what reads them."""


class Imported(NamedTuple):
    """What an import has made."""

    recipe: Path
    notes: tuple[str, ...]
    """What was assumed."""


def import_weights(origin: str, path: Path, flags: str | None, name: str | None, out: Path, plugins: Plugins) -> Imported:
    """Import the weights at `path` into the folder `out`, as NAME.safetensors and NAME.toml; by default named after `path`.

    Raises UsageError where it is asked for wrongly, CheckpointError where the weights cannot be read, understood or written.
    """
    if origin not in ORIGINS:
        raise UsageError(f'no origin "{origin}"{did_you_mean(origin, ORIGINS)} (known: {", ".join(ORIGINS)})')
    if name is not None and not re.fullmatch(SLUG, name):
        raise UsageError(f'--name "{name}" cannot be a recipe\'s name: use up to 64 letters, digits, - and _, the first a letter or digit')
    found = ORIGINS[origin](path, flags, plugins)
    return Imported(write(found, name or _slug(path), out, plugins), found.notes)


def _slug(path: Path) -> str:
    """A recipe's name from that of a file or folder."""
    own = path.resolve()
    plain = re.sub("[^A-Za-z0-9_-]+", "-", own.name if own.is_dir() else own.stem).strip("-_")[:64]
    return plain or "imported"
