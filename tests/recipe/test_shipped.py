"""The recipes that come with cdmkit: each can be read, is planned, is right by the schema that editors use, and says what papers say."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from cdmkit.importing import flags, openai
from cdmkit.plugins import Plugins, load_plugins
from cdmkit.recipe import Recipe, read, to_table
from cdmkit.recipe.schema import recipe_schema
from tests import tiny

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
OURS = {"quickstart", "imagenette64"}
"""Those that follow no paper's figures: their lines have no tags."""
TAGGED = [path for path in RECIPES if path.stem not in OURS]

FIGURES: Mapping[str, Mapping[str, Any]] = {
    "imagenet64": {  # CDM, Appendix B
        "data.classes": 1000,
        "stage.base.resolution": 32,
        "stage.base.backbone.channels": 256,
        "stage.base.backbone.multipliers": [1, 2, 3, 4],
        "stage.base.backbone.blocks": 6,
        "stage.base.backbone.attention": [8, 16],
        "stage.base.backbone.heads": 4,
        "stage.base.backbone.dropout": 0.1,
        "stage.base.schedule": {"type": "cosine", "timesteps": 4000},
        "stage.base.train.steps": 700_000,
        "stage.base.train.flip": True,
        "stage.sr64.resolution": 64,
        "stage.sr64.augment.0.type": "gaussian-noise",
        "stage.sr64.backbone.channels": 256,
        "stage.sr64.backbone.multipliers": [1, 2, 3, 4],
        "stage.sr64.backbone.blocks": 5,
        "stage.sr64.train.steps": 400_000,
        "stage.*.train.batch": 2048,
        "stage.*.train.optimizer.lr": 1e-4,
        "stage.*.train.ema": 0.9999,
        "stage.*.variance": "learned-range",
        "stage.*.sampler": {"type": "ancestral", "steps": 4000},
    },
    "imagenet128": {  # CDM, Appendix B
        "stage.sr128.resolution": 128,
        "stage.sr128.augment.0.type": "gaussian-blur",
        "stage.sr128.backbone.channels": 128,
        "stage.sr128.backbone.multipliers": [1, 2, 4, 8, 8],
        "stage.sr128.backbone.blocks": 3,
        "stage.sr128.backbone.attention": [16],
        "stage.sr128.backbone.heads": 1,
        "stage.sr128.backbone.dropout": 0.0,
        "stage.sr128.noise_input": "alpha-bar",
        "stage.sr128.schedule.timesteps": 2000,
        "stage.sr128.sampler.steps": 100,
        "stage.sr128.train.batch": 1024,
        "stage.sr128.train.steps": 500_000,
    },
    "imagenet256": {  # CDM, Appendix B
        "stage.sr256.resolution": 256,
        "stage.sr256.augment.0": {"type": "gaussian-blur", "probability": 0.5, "min_sigma": 0.4, "max_sigma": 0.6, "size": 3},
        "stage.sr256.backbone.channels": 128,
        "stage.sr256.backbone.multipliers": [1, 2, 4, 4, 8, 8],
        "stage.sr256.backbone.blocks": 3,
        "stage.sr256.backbone.attention": [16],
        "stage.sr256.backbone.heads": 1,
        "stage.sr256.noise_input": "alpha-bar",
        "stage.sr256.schedule.timesteps": 2000,
        "stage.sr256.sampler.steps": 100,
        "stage.sr256.train.batch": 1024,
        "stage.sr256.train.steps": 500_000,
        "stage.sr256.train.flip": True,
    },
    "iddpm-imagenet64": {  # improved-diffusion, README and defaults
        "data.classes": 1000,
        "stage.base.resolution": 64,
        "stage.base.backbone.channels": 192,
        "stage.base.backbone.multipliers": [1, 2, 3, 4],
        "stage.base.backbone.blocks": 3,
        "stage.base.backbone.heads": 4,
        "stage.base.schedule": {"type": "cosine", "timesteps": 4000},
        "stage.base.variance": "learned-range",
        "stage.base.loss.type": "hybrid",
        "stage.base.sampler.steps": 250,
        "stage.base.train.batch": 2048,
        "stage.base.train.steps": 250_000,
        "stage.base.train.optimizer.lr": 3e-4,
        "stage.base.train.ema": 0.9999,
        "stage.base.train.flip": False,
    },
    "sr3-64-256": {  # SR3, its table of tasks and section on training
        "data.classes": 0,
        "data.downsample": "bicubic",
        "stage.sr256.low_res": 64,
        "stage.sr256.resolution": 256,
        "stage.sr256.upsample": "bicubic",
        "stage.sr256.noise_input": "alpha-bar",
        "stage.sr256.variance": "fixed-large",
        "stage.sr256.schedule.timesteps": 2000,
        "stage.sr256.loss": {"type": "simple", "norm": "l1"},
        "stage.sr256.sampler.steps": 100,
        "stage.sr256.backbone.channels": 128,
        "stage.sr256.backbone.multipliers": [1, 2, 4, 4, 8, 8],
        "stage.sr256.backbone.blocks": 3,
        "stage.sr256.backbone.resample": "residual",
        "stage.sr256.backbone.skip_rescale": True,
        "stage.sr256.backbone.dropout": 0.0,
        "stage.sr256.train.batch": 256,
        "stage.sr256.train.steps": 1_000_000,
        "stage.sr256.train.warmup": 10_000,
        "stage.sr256.train.optimizer": {"type": "adam", "lr": 1e-4},
    },
    "sr3-64-256-regression": {
        "stage.sr256.low_res": 64,
        "stage.sr256.prediction": "x0",
        "stage.sr256.loss": {"type": "simple", "norm": "l2"},
        "stage.sr256.backbone.multipliers": [1, 2, 4, 4, 8, 8],
        "stage.sr256.train.batch": 256,
        "stage.sr256.train.steps": 1_000_000,
        "stage.sr256.train.optimizer.lr": 1e-5,
    },
    "sr3-faces-16-128": {
        "data.downsample": "bicubic",
        "stage.sr128.low_res": 16,
        "stage.sr128.resolution": 128,
        "stage.sr128.upsample": "bicubic",
        "stage.sr128.noise_input": "alpha-bar",
        "stage.sr128.schedule.timesteps": 2000,
        "stage.sr128.backbone.channels": 128,
        "stage.sr128.backbone.multipliers": [1, 2, 4, 8, 8],
        "stage.sr128.backbone.blocks": 3,
        "stage.sr128.backbone.resample": "residual",
        "stage.sr128.backbone.skip_rescale": True,
        "stage.sr128.backbone.dropout": 0.2,
        "stage.sr128.train.batch": 256,
        "stage.sr128.train.steps": 1_000_000,
        "stage.sr128.train.warmup": 10_000,
        "stage.sr128.train.optimizer.lr": 1e-4,
    },
    "sr3-faces-1024": {
        "stage.base.resolution": 16,
        "stage.sr64.resolution": 64,
        "stage.sr256.resolution": 256,
        "stage.sr1024.resolution": 1024,
        "stage.sr256.backbone.channels": 128,
        "stage.sr256.backbone.multipliers": [1, 2, 4, 4, 8, 8],
        "stage.sr256.backbone.blocks": 3,
        "stage.sr256.backbone.dropout": 0.0,
        "stage.sr1024.backbone.channels": 16,
        "stage.sr1024.backbone.multipliers": [1, 2, 4, 8, 16, 32, 32, 32],
        "stage.sr1024.backbone.blocks": 2,
        "stage.sr1024.backbone.dropout": 0.0,
        "stage.*.schedule.timesteps": 2000,
        "stage.*.noise_input": "alpha-bar",
        "stage.*.train.batch": 256,
        "stage.*.train.steps": 1_000_000,
    },
    "adm-upsampled-256": {  # guided-diffusion, README
        "data.classes": 1000,
        "stage.base.resolution": 64,
        "stage.base.schedule.type": "cosine",
        "stage.base.backbone.blocks": 3,
        "stage.base.backbone.head_channels": 64,
        "stage.sr256.resolution": 256,
        "stage.sr256.schedule.type": "linear",
        "stage.sr256.upsample": "bilinear",
        "stage.sr256.backbone.multipliers": [1, 1, 2, 2, 4, 4],
        "stage.sr256.backbone.blocks": 2,
        "stage.sr256.backbone.heads": 4,
        "stage.*.backbone.channels": 192,
        "stage.*.backbone.attention": [32, 16, 8],
        "stage.*.schedule.timesteps": 1000,
        "stage.*.sampler": {"type": "ancestral", "steps": 250},
        "stage.*.train.steps": 0,
    },
    "lsun-bedroom": {"data.classes": 0, "stage.sr128.resolution": 128},
    "lsun-church": {"data.classes": 0, "stage.sr128.resolution": 128},
}
"""What papers and their authors' code say, by recipe and key; * stands for every stage, and a table for what is within it."""

PUBLISHED = {
    ("iddpm-imagenet64", "base"): 270e6,
    ("adm-upsampled-256", "base"): 296e6,
    ("adm-upsampled-256", "sr256"): 312e6,
    ("sr3-64-256", "sr256"): 625e6,
    ("sr3-64-256-regression", "sr256"): 625e6,
    ("sr3-faces-16-128", "sr128"): 550e6,
    ("sr3-faces-1024", "sr256"): 625e6,
    ("sr3-faces-1024", "sr1024"): 150e6,
    ("imagenet128", "sr128"): 550e6,  # SR3's of the same widths and depths: CDM gives none
    ("imagenet256", "sr256"): 625e6,
}
"""Parameters by recipe and stage. What papers say of their networks leaves some of it open: ours are within `TOLERANCE` of these."""

TOLERANCE = 0.025

COUNTED = {
    ("iddpm-imagenet64", "base"): 273_049_350,
    ("adm-upsampled-256", "base"): 295_904_454,
    ("adm-upsampled-256", "sr256"): 311_795_910,
}
"""Parameters of the networks that the authors' own code makes, counted there."""


@pytest.fixture(scope="module")
def all_plugins() -> Plugins:
    """Those that are installed."""
    return load_plugins()


@pytest.fixture(scope="module")
def schema(all_plugins: Plugins) -> dict[str, Any]:
    """The schema of recipes with what is installed."""
    return recipe_schema(all_plugins.catalog)


def test_recipes_are_found() -> None:
    """Those that have figures to be compared, and ours."""
    assert {path.stem for path in RECIPES} == OURS | set(FIGURES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_it_validates_under_its_own_name(path: Path, all_plugins: Plugins) -> None:
    """Name and file agree."""
    assert tiny.call("validate", path).exit_code == 0
    assert read(path, all_plugins).name == path.stem


@functools.cache
def planned(path: Path) -> list[dict[str, Any]]:
    """What `cdmkit plan` says of a recipe."""
    plans: list[dict[str, Any]] = json.loads(tiny.call("plan", "--json", path).stdout)
    return plans


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_it_is_planned(path: Path, all_plugins: Plugins) -> None:
    """Every stage has parameters, work and memory, and training where it is trained."""
    plans = planned(path)
    assert [each["stage"] for each in plans] == [stage.name for stage in read(path, all_plugins).cascade]
    counts = ("parameters", "macs_per_call", "sampling_calls", "state_bytes")
    assert all(each[count] > 0 for each in plans for count in counts)
    assert all((each[count] > 0) == (each["steps"] > 0) for each in plans for count in ("images_seen", "training_flops"))


def test_the_papers_cascade_is_planned() -> None:
    """Images seen are steps times batch (CDM appendix B); the base's parameters are our own count: the paper gives none."""
    base, sr64, sr256 = planned(next(path for path in RECIPES if path.stem == "imagenet256"))
    assert (base["stage"], sr64["after"], sr256["after"]) == ("base", "base", "sr64")
    assert base["parameters"] == pytest.approx(792.3e6, rel=1e-4)
    assert [each["images_seen"] for each in (base, sr64, sr256)] == [1_433_600_000, 819_200_000, 512_000_000]
    assert [each["sampling_calls"] for each in (base, sr64, sr256)] == [4000, 4000, 100]


def parameters(name: str) -> dict[str, int]:
    """By stage, as `cdmkit plan` counts them, without memory for them."""
    return {plan["stage"]: plan["parameters"] for plan in planned(ROOT / "recipes" / f"{name}.toml")}


@pytest.mark.parametrize(("name", "stage"), PUBLISHED)
def test_a_network_is_about_as_large_as_the_published_one(name: str, stage: str) -> None:
    """Within a fortieth, where papers leave details of it open."""
    assert parameters(name)[stage] == pytest.approx(PUBLISHED[name, stage], rel=TOLERANCE)


@pytest.mark.parametrize(("name", "stage"), COUNTED)
def test_a_network_is_as_large_as_the_one_of_its_authors_code(name: str, stage: str) -> None:
    """To the last parameter."""
    assert parameters(name)[stage] == COUNTED[name, stage]


def test_sr3s_blocks_bring_cdms_stages_nearer_to_sr3s_size() -> None:
    """With Improved DDPM's blocks, as in the stages below, they are farther from it: why these two stages have SR3's."""
    for name, stage in (("imagenet128", "sr128"), ("imagenet256", "sr256")):
        path, table = ROOT / "recipes" / f"{name}.toml", f"stage.{stage}.backbone"
        blocks = [f'{table}.resample="conv"', f"{table}.skip_rescale=false", f"{table}.scale_shift=true"]
        plans = json.loads(tiny.call("plan", "--json", path, *(part for each in blocks for part in ("--set", each))).stdout)
        others, ours = (abs(count - PUBLISHED[name, stage]) for count in (plans[-1]["parameters"], parameters(name)[stage]))
        assert ours < others


@functools.cache
def resolved(name: str) -> Mapping[str, Any]:
    """All that a recipe means, as plain tables."""
    table: Mapping[str, Any] = to_table(recipe(name))
    return table


@functools.cache
def recipe(name: str) -> Recipe:
    """A shipped one, read with what is installed."""
    return read(ROOT / "recipes" / f"{name}.toml", load_plugins())


def values(table: Any, key: str) -> Iterator[Any]:
    """What stands under a dotted key, of every stage where * stands for one."""
    part, _, rest = key.partition(".")
    below = table.values() if part == "*" else [table[int(part)] if isinstance(table, list) else table[part]]
    for each in below:
        yield from values(each, rest) if rest else [each]


def agrees(value: Any, wanted: Any) -> bool:
    """Equal, or a table that has all that is wanted."""
    if isinstance(wanted, Mapping):
        return all(key in value and agrees(value[key], wanted[key]) for key in wanted)
    return bool(value == wanted)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_those_of_the_paper(name: str) -> None:
    """In the recipe as it is resolved."""
    wrong = {key: value for key, wanted in FIGURES[name].items() for value in values(resolved(name), key) if not agrees(value, wanted)}
    assert wrong == {}


def test_regression_is_told_nothing_by_the_noise_and_calls_the_network_once() -> None:
    """Its one noisy point has no image in it; all but the kind of prediction and its training is SR3's."""
    stage = recipe("sr3-64-256-regression").stage["sr256"]
    assert stage.process().alpha_bars.tolist() == [1, 0]
    assert stage.sampler.calls(stage.sampling_process(), 0) == 1
    ours, sr3s = (resolved(name)["stage"]["sr256"] for name in ("sr3-64-256-regression", "sr3-64-256"))
    assert {key for key in ours if ours[key] != sr3s[key]} == {"schedule", "prediction", "noise_input", "loss", "sampler", "train"}


def test_the_noise_that_faces_are_enlarged_with_is_that_of_cdms_best_s() -> None:
    """Sigma at s = 751 of 4000 on the cosine schedule, to the nearest timestep of the linear one."""
    (cdm, s), (faces, ours) = (
        (recipe(name).stage["base"].process().column("noise"), recipe(name).stage["sr64"].condition.s)
        for name in ("imagenet64", "sr3-faces-1024")
    )
    assert int((faces - cdm[s]).abs().argmin()) == ours


# The files themselves


def header(path: Path) -> str:
    """The comment that a file begins with, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_its_header_names_the_command_and_the_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First of all, and where images must lie."""
    monkeypatch.delenv("CDMKIT_DATA", raising=False)
    source = read(path, load_plugins()).data.source
    first = next(line for line in header(path).splitlines() if line.startswith("  cdmkit "))
    assert first.split()[:3] == ["cdmkit", "run", f"recipes/{path.name}"]
    shards = getattr(source, "shards", "data/").removeprefix("data/")
    assert f"$CDMKIT_DATA/{shards}" in first or not shards


@pytest.mark.parametrize("path", TAGGED, ids=lambda path: str(path.stem))
def test_its_header_says_how_large_its_networks_are(path: Path) -> None:
    """In millions, as `cdmkit plan` counts; beside what is published, where it is."""
    counts = parameters(path.stem)
    told = re.search(r"`cdmkit plan`: (.*?) parameters", header(path))
    listed = [f"{stage} {in_millions(count)}M" for stage, count in counts.items()]
    assert told
    assert told[1] == (", ".join(listed) if len(listed) > 1 else f"{in_millions(*counts.values())}M")
    for (name, stage), count in PUBLISHED.items():
        assert name != path.stem or f"{count / 1e6:.0f}M" in header(path), stage


def in_millions(count: int) -> str:
    """With a decimal where it is small."""
    return f"{count / 1e6:.0f}" if count >= 10e6 else f"{count / 1e6:.1f}"


UNTAGGED = {"extends", "schema", "name", "description", "source", "weights"}
"""Keys that hold no figure."""


@pytest.mark.parametrize("path", TAGGED, ids=lambda path: str(path.stem))
def test_every_line_says_where_its_figure_is_from(path: Path) -> None:
    """By a tag at its end that the header explains."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"[\w.]+ *=", line)]
    tags = {line: re.findall(r"\[([PNCMI])\]", line.rpartition("# ")[2]) for line in lines if line.split()[0] not in UNTAGGED}
    assert len(tags) > 1
    assert [line for line, found in tags.items() if not found] == []
    assert {tag for found in tags.values() for tag in found} <= set(re.findall(r"\[([PNCMI])\]", header(path)))


@pytest.mark.parametrize("name", ["lsun-bedroom", "lsun-church"])
def test_nothing_is_said_to_be_the_papers_where_it_gives_nothing(name: str) -> None:
    """CDM's section 4.5 has no figures that we know of."""
    path = ROOT / "recipes" / f"{name}.toml"
    assert set(re.findall(r"\[([PNCMI])\]", path.read_text(encoding="utf-8"))) == {"I"}
    assert "not from the paper" in header(path)


def imports(path: Path) -> Iterator[tuple[str, str, str]]:
    """Of each `cdmkit import` in a header: whose weights, under which name, and the flags."""
    text = header(path).replace("\\\n", "")
    for line in text.splitlines():
        if line.strip().startswith("cdmkit import"):
            words = shlex.split(line)
            told = dict(zip(words[4::2], words[5::2], strict=True))
            yield words[2], told["--name"], told["--flags"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("adm-upsampled-256", {"base": "adm64", "sr256": "adm64-256"}),
        ("iddpm-imagenet64", {"base": "iddpm64"}),
    ],
)
def test_imported_weights_are_those_of_its_stages(name: str, weights: Mapping[str, str]) -> None:
    """By the flags of the header's commands: what `cdmkit import` would say of a stage is what the recipe says."""
    codes = {"guided-diffusion": flags.GUIDED, "improved-diffusion": flags.IMPROVED}
    found = {made: (codes[origin], text) for origin, made, text in imports(ROOT / "recipes" / f"{name}.toml")}
    assert set(found) == set(weights.values())
    for stage, made in weights.items():
        code, text = found[made]
        enlarges = "--small_size" in text
        published = openai.stage(flags.parse(text, code, enlarges), code, enlarges)
        ours = resolved(name)["stage"][stage]
        assert published.pop("low_res", None) == (resolved(name)["stage"][ours["after"]]["resolution"] if enlarges else None)
        published["backbone"]["attention"].sort()
        assert agrees({**ours, "backbone": {**ours["backbone"], "attention": sorted(ours["backbone"]["attention"])}}, published)
        assert "weights" not in ours or ours["weights"].endswith(f"/adm/{made}.safetensors")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_the_table_of_recipes_has_a_row_for_it(path: Path) -> None:
    """With the parameters that `cdmkit plan` counts, its resolutions and its data."""
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in page.splitlines() if row.startswith(f"| `{path.stem}` |")]
    assert len(rows) == 1
    _, _, stages, counts, published, data, *_ = rows[0]
    assert counts == ", ".join(map(in_millions, parameters(path.stem).values()))
    shown = recipe(path.stem)
    first = next(iter(shown.cascade))
    real = [] if first.low_res is None else [f"real {first.low_res}"]
    assert stages == " -> ".join([*real, *(str(stage.resolution) for stage in shown.cascade)])
    assert all(f"{count / 1e6:.0f}" in published for (name, _), count in PUBLISHED.items() if name == path.stem)
    assert data.strip("`").split(",")[0] in header(path) or data.startswith("none")


# The schema


def faults(schema: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """What the schema finds wrong."""
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(table)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_it_is_right_by_the_schema(path: Path, schema: dict[str, Any]) -> None:
    """As it stands in the file."""
    assert faults(schema, tomli.loads(path.read_text())) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
@pytest.mark.parametrize("place", ["", "data", "data.source", "stage.*", "stage.*.backbone"])
def test_a_key_too_many_is_not(path: Path, schema: dict[str, Any], place: str) -> None:
    """In whatever table."""
    root = tomli.loads(path.read_text())
    table = root
    for part in place.split(".") if place else ():
        table = next(reversed(table.values())) if part == "*" else table.setdefault(part, {})
    table["surplus"] = 1
    assert faults(schema, root) != []
