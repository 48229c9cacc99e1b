"""Faults of recipes: each with its place, its message and its exit code, and all of a file at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmkit.errors import RecipeError, SetupError
from cdmkit.plugins import Plugins
from cdmkit.recipe import Faults, Recipe, read
from tests.recipe.conftest import BASE, DEFAULTS, FINE, HEAD, TWO, Faulty, Read, Write

ONE = HEAD + DEFAULTS + BASE
"""Line 13 is the resolution; what is added is line 14 on."""


def test_all_faults_of_a_file_are_reported_at_once_in_its_order(faulty: Faulty) -> None:
    """Unknown keys, wrong types, ranges, components, choices, names and the graph."""
    text = """\
    schema = 1
    name = "no name"
    sed = 3
    [data]
    source = { type = "nothin" }
    classes = 1.9
    [stage.base]
    resolution = "8"
    after = "bose"
    schedule = { type = "line", timesteps = 0, end = 1.5, speed = 1 }
    loss = { type = "distance", norm = "squard", weights = [1, -1, "x"] }
    backbone = "tiny"
    sampler = { type = "walk" }
    backend = { type = "here", quick = "false" }
    [stage.base.train]
    batch = 7
    accumulate = 2
    steps = true
    optimizer = { lr = 1, step = 2 }
    """
    assert faulty(text) == [
        'r.toml:2:1: name: "no name" cannot be a folder name: use up to 64 letters, digits, - and _, the first a letter or digit',
        'r.toml:3:1: sed: unknown key; did you mean "seed"?',
        'r.toml:5:12: data.source.type: unknown source "nothin"; did you mean "nothing"?',
        "r.toml:6:1: data.classes: must be an integer, not 1.9",
        'r.toml:8:1: stage.base.resolution: must be an integer, not the string "8"',
        'r.toml:9:1: stage.base.after: there is no stage "bose"; did you mean "base"?',
        "r.toml:10:29: stage.base.schedule.timesteps: 0 is out of range: it must be >= 1",
        "r.toml:10:44: stage.base.schedule.end: 1.5 is out of range: it must be < 1",
        "r.toml:10:55: stage.base.schedule.speed: unknown key; known: timesteps, end",
        'r.toml:11:29: stage.base.loss.norm: must be one of "absolute", "squared", not the string "squard"; did you mean "squared"?',
        'r.toml:11:64: stage.base.loss.weights[2]: must be a number, not the string "x"',
        'r.toml:12:1: stage.base.backbone: must be a table that names a backbone, such as { type = "tiny" }, not the string "tiny"',
        "r.toml:13:1: stage.base.sampler.steps: is missing",
        'r.toml:14:28: stage.base.backend.quick: must be true or false, not the string "false"',
        "r.toml:18:1: stage.base.train.steps: must be an integer, not true",
        "r.toml:19:23: stage.base.train.optimizer.step: unknown key; known: lr, beta1, beta2, eps",
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("train.steps = 1.5", "14:7: stage.base.train.steps: must be an integer, not 1.5"),
        ("train.steps = 1979-05-27", "14:7: stage.base.train.steps: must be an integer, not a date"),
        ("train.steps = inf", "14:7: stage.base.train.steps: must be an integer, not inf"),
        ("train.ema = nan", "14:7: stage.base.train.ema: must be a finite number"),
        ("train.ema = true", "14:7: stage.base.train.ema: must be a number, not true"),
        (f"train.clip_grad = 1{'0' * 400}", "14:7: stage.base.train.clip_grad: must be a finite number"),
        ("train = 5", "14:1: stage.base.train: must be a table, not 5"),
        ("upsample = 5", '14:1: stage.base.upsample: must be one of "area", "bilinear", "bicubic", "nearest", not 5'),
        ("after = []", "14:1: stage.base.after: must be a string, not a list"),
        ('augment = "noise"', '14:1: stage.base.augment: must be a list, not the string "noise"'),
        ("augment = { a = 1 }", "14:1: stage.base.augment: must be a list, not a table"),
        ("labels = 1", "14:1: stage.base.labels: must be true or false, not 1"),
        ("sampler.type = 4", "14:9: stage.base.sampler.type: must be a string, not 4"),
        ('name = "x"', "14:1: stage.base.name: unknown key: a stage is named by its table"),
        ("train.batch = 9\ntrain.accumulate = 2", "14:1: stage.base.train: batch = 9 cannot be split into accumulate = 2 equal parts"),
        ("condition.s = 3", "12:8: stage.base: condition: for stages that enlarge images: set `after` or `low_res`, or remove it"),
        ("[sample]\ncount = 0", "15:1: sample.count: 0 is out of range: it must be >= 1"),
        ("[[defaults.extra]]", None),
    ],
)
def test_wrong_values(faulty: Faulty, line: str, fault: str | None) -> None:
    """Nothing is converted, nothing is ignored."""
    expected = f"r.toml:{fault}" if fault else "r.toml:5:2: defaults: must hold one table, [defaults.stage], and nothing else"
    assert faulty(f"{ONE}{line}\n") == [expected]


@pytest.mark.parametrize(
    ("line", "value"),
    [("train.steps = 1e4", 10_000), ("train.steps = 1_000", 1000), ("train.steps = 0x10", 16), ("train.steps = 2.0", 2)],
)
def test_whole_numbers_however_written(reading: Read, line: str, value: int) -> None:
    """1e4 is a float to TOML, but a number of steps to people."""
    steps = reading(f"{ONE}{line}\n").stage["base"].train.steps
    assert (steps, type(steps)) == (value, int)


def test_integers_are_numbers_too(reading: Read) -> None:
    """`ema = 0` is 0.0."""
    ema = reading(f"{ONE}train.ema = 0\n").stage["base"].train.ema
    assert (ema, type(ema)) == (0.0, float)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_have_63_bits(faulty: Faulty, seed: int) -> None:
    """Below 0 and beyond the largest."""
    assert faulty(ONE, f"seed={seed}")[0].startswith(f"--set seed: seed: {seed} is out of range")


def test_a_fault_of_the_defaults_is_reported_once(faulty: Faulty) -> None:
    """However many stages use it."""
    assert faulty(TWO.replace("backbone =", "backbon =")) == [
        'r.toml:8:1: defaults.stage.backbon: unknown key; did you mean "backbone"?',
        "r.toml:12:8: stage.base.backbone: is missing",
        "r.toml:14:8: stage.fine.backbone: is missing",
    ]


def test_an_empty_file_lacks_what_has_no_default(faulty: Faulty) -> None:
    """Each required key is named."""
    assert faulty("") == [f"r.toml:1:1: {key}: is missing" for key in ("schema", "name", "stage")]
    assert faulty(HEAD + "[stage]") == ["r.toml:5:2: stage: there is no stage: add a table such as [stage.base]"]


@pytest.mark.parametrize("stage", ["a b", "../x", "", "größe", "x" * 65, "-x", ".x"])
def test_stage_names_are_folder_names(faulty: Faulty, stage: str) -> None:
    """Nothing that leaves a folder or needs quotes."""
    (line,) = faulty(f'{HEAD}{DEFAULTS}[stage."{stage}"]\nresolution = 8\n')
    assert line.startswith("r.toml:12:8: stage.")
    assert "cannot be a folder name" in line


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"a = 1\nb = = 2\n", "2:5: this is not valid TOML: invalid value"),
        (b"[a]\n[a]\n", "2:3: this is not valid TOML: cannot declare ('a',) twice"),
        (b"\xef\xbb\xbfschema = 1\n", "1:1: starts with a byte order mark: save it as UTF-8 without BOM"),
        ("schema = 1\ndescription = 'é".encode() + b"\xff'\n", "2:17: byte 0xff is not UTF-8: save the file as UTF-8"),
        (b"\x00", "1:1: this is not valid TOML: invalid statement"),
        (b"a = " + b"[" * 3000, "1:1: this cannot be read as TOML: "),
        (b"a = " + b"9" * 5000, "1:1: this cannot be read as TOML: "),
    ],
)
def test_files_that_are_not_toml(tmp_path: Path, plugins: Plugins, data: bytes, fault: str) -> None:
    """With line and column, as far as there are any."""
    path = tmp_path / "r.toml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        read(path, plugins)
    assert str(caught.value).startswith(f"{path}:{fault}")


def test_files_that_cannot_be_opened(tmp_path: Path, plugins: Plugins) -> None:
    """A missing file and a folder."""
    for path in (tmp_path / "gone.toml", tmp_path):
        with pytest.raises(RecipeError, match="cannot be read"):
            read(path, plugins)


def test_a_stage_after_itself_and_a_circle_are_printed(faulty: Faulty) -> None:
    """The way round, once for each circle, whatever hangs on it."""
    assert faulty(f'{ONE}after = "base"\n') == ["r.toml:14:1: stage.base.after: stages follow each other in a circle: base -> base"]
    circle = '[stage.x]\nresolution = 8\nafter = "y"\n[stage.y]\nresolution = 8\nafter = "z"\n[stage.z]\nresolution = 8\nafter = "x"\n'
    hanging = '[stage.a]\nresolution = 8\nafter = "x"\n'
    assert faulty(ONE + circle + hanging) == ["r.toml:16:1: stage.x.after: stages follow each other in a circle: x -> y -> z -> x"]


def test_a_parent_that_is_not_there(faulty: Faulty) -> None:
    """The nearest stage, or all of them."""
    assert faulty(TWO.replace('after = "base"', 'after = "bass"')) == [
        'r.toml:15:1: stage.fine.after: there is no stage "bass"; did you mean "base"?'
    ]
    (line,) = faulty(TWO.replace('after = "base"', 'after = "xyz"'))
    assert line.endswith('there is no stage "xyz"; stages: base, fine')


@pytest.mark.parametrize("resolution", [4, 8, 12, 20])
def test_a_stage_is_a_whole_multiple_of_its_parent(faulty: Faulty, resolution: int) -> None:
    """Falling, equal and broken factors: both numbers and the parent's name."""
    assert faulty(TWO, f"stage.fine.resolution={resolution}") == [
        f'--set stage.fine.resolution: stage.fine.resolution: {resolution} is not 2, 3, 4, ... times 8, the resolution of its parent "base"'
    ]


def test_s_is_a_timestep_of_the_schedule_it_counts_in(faulty: Faulty, reading: Read) -> None:
    """The parent's, or the augmentation's own."""
    own = 'stage.fine.augment=[{ type = "noise", schedule = { type = "curve", timesteps = 200 } }]'
    assert reading(TWO, "stage.fine.condition.s=100").stage["fine"].condition.s == 100
    assert faulty(TWO, "stage.fine.condition.s=101")[0].endswith("s = 101 is beyond 100, the last timestep of the schedule it counts in")
    assert reading(TWO, own, "stage.fine.condition.s=200").stage["fine"].condition.s == 200
    assert faulty(TWO, own, "stage.fine.condition.s=201")[0].endswith(
        "s = 201 is beyond 200, the last timestep of the schedule it counts in"
    )


def test_s_exists_for_every_augmentation_that_noises(faulty: Faulty) -> None:
    """One with a schedule of its own does not hide the parent's, which another follows."""
    both = 'stage.fine.augment=[{ type = "noise" }, { type = "noise", schedule = { type = "curve", timesteps = 200 } }]'
    assert faulty(TWO, both, "stage.fine.condition.s=150") == [
        "--set stage.fine.condition.s: stage.fine.condition.s: s = 150 is beyond 100, the last timestep of the schedule it counts in"
    ]


def test_what_an_augmentation_says_of_its_parent(faulty: Faulty) -> None:
    """Its own words, at its table; and those of a schedule that makes no process."""
    wrong = (
        '{ type = "gaussian-noise", max_s = 4 }',
        '{ type = "gaussian-blur", size = 17 }',
        '{ type = "noise", schedule = { type = "line", end = -1 } }',
    )
    lines = faulty(TWO, f"stage.fine.augment=[{', '.join(wrong)}]")
    assert [line.partition("stage.fine.augment: ")[2][:45] for line in lines] == [
        "stage.fine.augment[0]: condition.s = 5 is bey",
        "stage.fine.augment[1]: size = 17 is too wide ",
        "stage.fine.augment[2]: alpha_bars must be a v",
    ]


def test_truncated_needs_the_parents_own_chain(faulty: Faulty, reading: Read) -> None:
    """Noise along another schedule, or a parent sampled along another, makes z_s something the stage was not trained on."""
    truncated = 'stage.fine.condition.mode="truncated"'
    same, other = (f'stage.fine.augment=[{{ type = "noise", schedule = {{ type = "{name}" }} }}]' for name in ("line", "curve"))
    assert isinstance(reading(TWO, truncated, same), Recipe)
    assert faulty(TWO, truncated, other)[0].endswith('truncated needs noise along the schedule of "base": remove the augmentation\'s own')
    sampling = ('stage.base.sampling_schedule={ type = "line" }', 'stage.base.noise_input="alpha-bar"')
    assert isinstance(reading(TWO, *sampling), Recipe)
    assert "sampled along its training schedule" in faulty(TWO, truncated, *sampling)[0]


def test_a_sampler_that_cannot_run_its_chain(faulty: Faulty) -> None:
    """More steps than timesteps."""
    assert faulty(TWO, "stage.fine.sampler.steps=101") == [
        "--set stage.fine.sampler.steps: stage.fine.sampler: cannot respace 100 timesteps to 101: it must be 1 to 100"
    ]


def test_a_schedule_that_makes_no_process(faulty: Faulty) -> None:
    """The component's own words, at its table."""
    (line,) = faulty(TWO, 'stage.base.schedule={ type = "line", end = -1 }')
    assert line.startswith("--set stage.base.schedule: stage.base.schedule: alpha_bars must be")


@pytest.mark.parametrize("key", ["schedule", "sampling_schedule"])
@pytest.mark.parametrize("end", [0, 1e-50])
def test_epsilon_needs_a_signal_at_the_end(faulty: Faulty, reading: Read, key: str, end: float) -> None:
    """Where alpha_bar is 0, also by rounding, x_0 does not follow from epsilon; it does from v."""
    overrides = 'stage.base.noise_input="alpha-bar"', f'stage.base.{key}={{ type = "line", end = {end} }}'
    (line,) = faulty(TWO, *overrides)
    assert line.startswith(f"--set stage.base.{key}: stage.base.{key}: alpha_bar ends at 0, where epsilon says nothing of the image")
    assert isinstance(reading(TWO, *overrides, 'stage.base.prediction="v"'), Recipe)


def test_a_network_that_cannot_be_built(faulty: Faulty) -> None:
    """The backbone's own words, at its table."""
    assert faulty(TWO, "stage.fine.backbone.width=2") == ["--set stage.fine.backbone.width: stage.fine.backbone: width = 2 must be odd"]


def test_what_a_component_says_of_its_options_together(faulty: Faulty) -> None:
    """A ValueError of its making, at its table."""
    (line,) = faulty(TWO.replace('"noise" }', '"noise", low = 0.9, high = 0.1 }'))
    assert line == "r.toml:17:12: stage.fine.augment[0]: low = 0.9 is above high = 0.1"


@pytest.mark.parametrize(
    "table",
    [
        '{ _target_ = "os.system" }',
        '{ type = "os.system" }',
        '{ type = "line", class_name = "x.Y" }',
        '{ type = "a:b" }',
        '{ target = "x" }',
    ],
)
def test_recipes_cannot_import_code(faulty: Faulty, table: str) -> None:
    """Dotted paths and the keys that other tools use for them."""
    (line,) = faulty(f"{ONE}schedule = {table}\n")
    assert line.startswith("r.toml:14:")
    assert "recipes cannot import code" in line


def test_a_component_nobody_offers_is_a_matter_of_what_is_installed(faulty: Faulty) -> None:
    """Exit code 4, unless the recipe is at fault, too."""
    text = TWO.replace('"line"', '"perfect"')
    assert faulty(text, code=4) == [
        'r.toml:6:14: defaults.stage.schedule.type: no installed plugin offers schedule "perfect": '
        "install the one that does, or choose one of: cosine, curve, line, linear, regression, shifted-cosine, sigmoid"
    ]
    assert len(faulty(f"{text}x = 1\n", code=3)) == 2


def test_an_older_cdmkit_says_so_first(faulty: Faulty) -> None:
    """A newer schema has keys that this one does not know, so nothing else is said."""
    text = TWO.replace("schema = 1", "schema = 2") + "new = 1\n"
    assert faulty(text) == [
        "r.toml:1:1: schema: this cdmkit reads recipes of schema 1, not 2: install the cdmkit that the recipe was written for"
    ]


def test_missing_distributions_are_said_first_with_the_line_that_installs_them(faulty: Faulty) -> None:
    """Before the components that they would offer."""
    requires = '[requires]\ncdmkit = ">=99"\nplugins = ["attrs>=1", "cdmkit-no-such>=1", "attrs>=9999"]\n'
    lines = faulty(requires + TWO.replace('"line"', '"perfect"').replace("schema = 1\n", "").replace('name = "two"\n', ""), code=4)
    assert lines[0].startswith("r.toml:2:1: requires.cdmkit: the recipe needs cdmkit >=99, this is ")
    assert lines[0].endswith("pip install 'cdmkit>=99'")
    assert lines[1].endswith("the recipe needs cdmkit-no-such>=1, but it is not installed: pip install 'cdmkit-no-such>=1'")
    assert lines[2].startswith("r.toml:3:45: requires.plugins[2]: the recipe needs attrs>=9999, but ")
    assert len(lines) == 3


def test_requirements_that_are_none(faulty: Faulty) -> None:
    """They are faults of the recipe, beside its others."""
    lines = faulty('requires = { cdmkit = "new", plugins = ["a b"] }\n' + TWO + "x = 1\n")
    assert [line.partition(": ")[2] for line in lines[:2]] == [
        'requires.cdmkit: "new" is no version range: write it as in ">=0.1"',
        'requires.plugins[0]: "a b" is no requirement: write it as in "cdmkit-xla>=1"',
    ]
    assert len(lines) == 3


def test_faults_are_errors_of_the_recipe_or_of_the_setup(write: Write, plugins: Plugins) -> None:
    """Callers may catch either kind, or both."""
    with pytest.raises(RecipeError) as recipe:
        read(write(""), plugins)
    with pytest.raises(SetupError) as setup:
        read(write(TWO.replace('"line"', '"perfect"')), plugins)
    assert isinstance(recipe.value, Faults)
    assert isinstance(setup.value, Faults)
    assert FINE in TWO
