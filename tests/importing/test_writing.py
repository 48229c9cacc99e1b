"""What an import writes: weights that say what they are, and a recipe that is whole."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cdmkit.errors import CheckpointError, UsageError
from cdmkit.importing import import_weights, writing
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read, read_stage, to_table
from cdmkit.training import fit, read_metadata, read_weights
from tests.importing.cases import DIFFUSERS, OPENAI, options, save

PLUGINS = load_plugins()


def take(path: Path, case: str, out: Path, name: str | None = None) -> Path:
    """Import a case's files; the recipe."""
    origin, flags = options(case)
    return import_weights(origin, path, flags, name, out, PLUGINS).recipe


@pytest.mark.parametrize("case", [*OPENAI, *DIFFUSERS])
def test_weights_and_recipe_agree(case: str, tmp_path: Path) -> None:
    """The recipe is valid; its stage is the one that the weights say they are of, and its network takes them."""
    recipe = read(take(save(tmp_path, case), case, tmp_path / "out", "found"), PLUGINS)
    (stage,) = recipe.stage.values()
    weights = tmp_path / "out" / "found.safetensors"
    assert (recipe.name, stage.weights, stage.train.steps) == ("found", str(weights), 0)
    told = read_metadata(weights)
    assert told["table"] == to_table(stage)
    assert (told["stage"], told["parent"]) == (stage.name, None)
    assert read_stage(told, PLUGINS.catalog) == stage
    assert told["data"]["classes"] == recipe.data.classes
    fit(stage.backbone.build(stage.network_spec(recipe.data.classes)), read_weights(weights)[0], weights)


def test_weights_say_where_they_are_from(tmp_path: Path) -> None:
    """The code, the file, the flags; and how the code makes small images of large ones."""
    take(save(tmp_path, "DDPM"), "DDPM", tmp_path)
    told = read_metadata(tmp_path / "model.safetensors")
    assert told["origin"] == {"code": "openai/guided-diffusion", "file": "model.pt", "flags": OPENAI["DDPM"][1]}
    assert told["data"] == {"fingerprint": "", "downsample": "area", "classes": 0}
    assert read(tmp_path / "model.toml", PLUGINS).description == f"imported from openai/guided-diffusion, model.pt, {OPENAI['DDPM'][1]}"


def test_a_stage_that_enlarges_brings_pictures_to_try_it_with(tmp_path: Path) -> None:
    """Drawn ones, as large as it makes them; what it enlarges is said by their resolution."""
    recipe = read(take(save(tmp_path, "ADM upsampler"), "ADM upsampler", tmp_path), PLUGINS)
    stage = recipe.stage["sr64"]
    assert (stage.resolution, stage.low_res, stage.upsample.value) == (64, 16, "bilinear")
    assert recipe.data.source.card().resolution == 64


@pytest.mark.parametrize(
    ("file", "name"),
    [("ema_0.9999_200000.pt", "ema_0-9999_200000"), ("größe 64.pt", "gr-e-64"), ("...pt", "imported"), ("x" * 90 + ".pt", "x" * 64)],
)
def test_a_name_is_made_of_the_files(file: str, name: str, tmp_path: Path) -> None:
    """Whatever it is called."""
    path = save(tmp_path, "DDPM").rename(tmp_path / file)
    assert take(path, "DDPM", tmp_path / "out") == tmp_path / "out" / f"{name}.toml"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "x" * 65, "ä"])
def test_names_that_are_no_names_are_refused(name: str, tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match="cannot be a recipe's name"):
        take(tmp_path / "gone.pt", "DDPM", tmp_path, name)


@pytest.mark.parametrize("there", ["found.toml", "found.safetensors"])
def test_nothing_is_written_over(there: str, tmp_path: Path) -> None:
    """Neither of the two."""
    path = save(tmp_path, "DDPM")
    (tmp_path / there).write_text("mine")
    with pytest.raises(UsageError, match=f"{there} would be written over"):
        take(path, "DDPM", tmp_path, "found")
    assert (tmp_path / there).read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"model.pt", there}


def test_paths_with_what_recipes_read_otherwise_are_kept(tmp_path: Path) -> None:
    """Quotes, backslashes, and what looks like a variable."""
    out = tmp_path / 'a "b" \\ ${env:HOME}'
    recipe = read(take(save(tmp_path, "DDPM"), "DDPM", out), PLUGINS)
    assert recipe.stage["base"].weights == str(out / "model.safetensors")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files can only grow to some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_full_disk_is_said(size: int, tmp_path: Path) -> None:
    """No part of a file is left."""
    path = save(tmp_path, "DDPM")
    with full_disk(size), pytest.raises(CheckpointError, match="cannot be written"):
        take(path, "DDPM", tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == []


def test_weights_without_a_recipe_are_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the recipe cannot be written, the weights are taken back."""

    def fail(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    path = save(tmp_path, "DDPM")
    monkeypatch.setattr(writing, "write_text", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        take(path, "DDPM", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_path_that_is_no_text_is_a_usage_error(tmp_path: Path) -> None:
    """A recipe could not name it."""
    with pytest.raises(UsageError, match="no text"):
        take(save(tmp_path, "DDPM"), "DDPM", tmp_path / "out\udcff")


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    """As what cannot be written."""
    path = save(tmp_path, "DDPM")
    with pytest.raises(CheckpointError, match="cannot be written"):
        take(path, "DDPM", path)


def test_unknown_origins_and_flags_without_use_are_usage_errors(tmp_path: Path) -> None:
    """With the nearest origin."""
    with pytest.raises(UsageError, match='no origin "guided-difusion"; did you mean "guided-diffusion"'):
        import_weights("guided-difusion", tmp_path, None, None, tmp_path, PLUGINS)
    with pytest.raises(UsageError, match="saves its settings beside the weights"):
        import_weights("diffusers", tmp_path, "--image_size 64", None, tmp_path, PLUGINS)


def test_equal_files_are_written_of_equal_ones(tmp_path: Path) -> None:
    """Byte for byte."""
    path = save(tmp_path, "DDPM")
    for out in ("one", "other"):
        take(path, "DDPM", tmp_path / out)
    one, other = (read_weights(tmp_path / out / "model.safetensors")[0] for out in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in {*one, *other})
