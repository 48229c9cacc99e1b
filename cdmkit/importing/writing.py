"""A published stage as files of cdmkit's: weights that say what they are, and a recipe that samples them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cdmkit.cascade import Stage
from cdmkit.errors import CheckpointError, UsageError
from cdmkit.files import replaced, write_text
from cdmkit.importing.published import Published, translate
from cdmkit.plugins import Plugins
from cdmkit.recipe import Faults, dotted, read, to_table
from cdmkit.recipe.write import as_toml


def write(published: Published, name: str, out: Path, plugins: Plugins) -> Path:
    """Write NAME.safetensors and NAME.toml into the folder `out`; the path of the recipe. Nothing is written where something is wrong.

    Raises UsageError where one of them is there already, CheckpointError where the weights are another network's or cannot be written,
    and the published stage's own kind of error where cdmkit has no such stage.
    """
    weights, path = (out / f"{name}.{ending}" for ending in ("safetensors", "toml"))
    if there := [str(each) for each in (weights, path) if each.exists()]:
        raise UsageError(f"{' and '.join(there)} would be written over: choose another --name or --out, or remove what is there")
    text = recipe_text(published, name, weights)
    stage = stage_of(published, text, plugins)
    with torch.device("meta"):
        network = stage.backbone.build(stage.network_spec(published.data["classes"]))
    tensors = translate(published, network)
    said = {"stage": stage.name, "table": to_table(stage), "parent": None, "data": dict(published.data), "origin": dict(published.origin)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        _save(weights, tensors, said)
        write_text(path, text)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            weights.unlink(missing_ok=True)  # one without the other would only stand in the way
        raise CheckpointError(f"{weights} and {path.name} cannot be written: {error}.") from error
    return path


def stage_of(published: Published, text: str, plugins: Plugins) -> Stage:
    """The one stage of a recipe's text, read as every recipe is. Raises the published stage's own kind of error where it has a fault."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.toml"
            path.write_text(text, encoding="utf-8")
            recipe = read(path, plugins)
    except Faults as error:
        told = "; ".join(f"{dotted(fault.path)}: {fault.text}" for fault in error.faults)
        raise published.fault(f"{published.source}: cdmkit has no such stage: {told}") from error
    except OSError as error:
        raise CheckpointError(f"a temporary file cannot be written: {error}.") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"a path that is no text cannot be named in a recipe: {error}") from error
    (stage,) = recipe.stage.values()
    return stage


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """A weights file as training writes them, there as a whole or not at all."""
    with replaced(path) as beside:
        save_file(dict(tensors), beside, metadata={"cdmkit": json.dumps(metadata, sort_keys=True)})


def recipe_text(published: Published, name: str, weights: Path) -> str:
    """A recipe of this stage alone."""
    return "\n".join(_lines_of(published, name, weights)) + "\n"


def _lines_of(published: Published, name: str, weights: Path) -> Iterator[str]:
    """The lines of a recipe of this stage alone."""
    table = {"resolution": published.stage["resolution"], "weights": str(weights), **published.stage}
    stage = f"sr{table['resolution']}" if "low_res" in table else "base"
    network = table.pop("backbone")
    origin = ", ".join(str(value) for value in published.origin.values() if value)
    yield from _lines({"schema": 1, "name": name, "description": f"imported from {origin}"})
    yield from ("", "[data]")
    if "low_res" in table:
        yield "# Drawn pictures, to try it out: put your own source here, of pictures as large as the stage's or a multiple of it."
        yield from _lines({"source": {"type": "shapes", "resolution": table["resolution"]}})
    yield from _lines({key: value for key, value in published.data.items() if key != "fingerprint"})
    yield from ("", f"[stage.{stage}]")
    yield from _lines(table)
    yield from ("", f"[stage.{stage}.backbone]")
    yield from _lines(network)


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    return (f"{key} = {as_toml(value)}" for key, value in table.items())
