"""Reading recipes: merging, variables, overrides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdmkit.cascade import Mode, Stage
from cdmkit.plugins import Plugins
from cdmkit.recipe import Recipe, read, to_table
from tests.recipe.components import Curve, Distance, Line, Noise, Nothing, Walk
from tests.recipe.conftest import BASE, DEFAULTS, FINE, HEAD, TWO, Faulty, Read, Write


def source(recipe: Recipe) -> Nothing:
    """The recipe's source."""
    assert isinstance(recipe.data.source, Nothing)
    return recipe.data.source


def sampler(stage: Stage) -> Walk:
    """The stage's sampler."""
    assert isinstance(stage.sampler, Walk)
    return stage.sampler


def test_a_recipe_is_a_tree_of_the_components_themselves(reading: Read) -> None:
    """Tables become stages, tables with a type become components, choices become enums, lists tuples."""
    recipe = reading(TWO)
    fine = recipe.stage["fine"]
    assert (recipe.name, recipe.seed, list(recipe.stage)) == ("two", 0, ["base", "fine"])
    assert (fine.name, fine.after, fine.resolution, fine.augment) == ("fine", "base", 16, (Noise(),))
    assert (fine.schedule, fine.loss, fine.condition.mode, fine.condition.s) == (Line(), Distance(), Mode.NON_TRUNCATED, 5)
    assert [stage.name for stage in recipe.cascade] == ["base", "fine"]


def test_stages_keep_the_order_of_the_file_and_the_cascade_puts_parents_first(reading: Read) -> None:
    """A child may be written before its parent."""
    recipe = reading(HEAD + DEFAULTS + FINE + BASE)
    assert list(recipe.stage) == ["fine", "base"]
    assert [stage.name for stage in recipe.cascade] == ["base", "fine"]


def test_defaults_lie_under_every_stage_table_by_table(reading: Read) -> None:
    """A stage's own values win; the rest of its tables comes from the defaults."""
    recipe = reading(TWO + "train = { steps = 7 }\nsampler = { steps = 3 }\n")
    assert (recipe.stage["fine"].train.steps, recipe.stage["fine"].train.batch) == (7, 8)
    assert (sampler(recipe.stage["fine"]).steps, sampler(recipe.stage["base"]).steps) == (3, 10)


def test_another_type_replaces_a_component_whole(reading: Read) -> None:
    """The options of the component that is not chosen any more do not come along."""
    text = TWO.replace('"line" }', '"line", end = 0.5 }') + 'schedule = { type = "curve" }\n'
    recipe = reading(text)
    assert (recipe.stage["base"].schedule, recipe.stage["fine"].schedule) == (Line(end=0.5), Curve())


def test_extends_lays_a_file_on_another_in_its_own_folder(write: Write, plugins: Plugins) -> None:
    """Chains work, paths count from the file that names them, lists replace, defaults merge before stages do."""
    write(TWO, "deep/ground.toml")
    write('extends = "ground.toml"\nname = "middle"\n[stage.fine]\naugment = []\ncondition = { s = 0 }\n', "deep/middle.toml")
    path = write('extends = "deep/middle.toml"\n[defaults.stage.train]\nbatch = 2\n[stage.base]\ntrain = { steps = 1 }\n')
    recipe = read(path, plugins)
    assert (recipe.name, recipe.stage["fine"].augment) == ("middle", ())
    assert [(stage.train.batch, stage.train.steps) for stage in recipe.cascade] == [(2, 1), (2, 100)]


def test_faults_of_an_extended_file_name_that_file(write: Write, faulty: Faulty) -> None:
    """A value stands where it was written, whoever uses it."""
    write(TWO.replace("batch = 8", "batch = 0"), "ground.toml")
    (line,) = faulty('extends = "ground.toml"\nname = "other"\n')
    assert line == "ground.toml:11:11: defaults.stage.train.batch: 0 is out of range: it must be >= 1"


def test_extending_in_a_circle_prints_the_circle(write: Write, faulty: Faulty) -> None:
    """The way round, found although the paths are written differently."""
    write('extends = "./r.toml"\n', "b.toml")
    assert faulty('name = "x"\nextends = "b.toml"\n') == [
        "b.toml:1:1: extends: recipes extend each other in a circle: r.toml -> b.toml -> r.toml"
    ]


def test_a_missing_extended_file_is_named_at_the_key(faulty: Faulty) -> None:
    """Line, column and the path looked for."""
    assert faulty('name = "x"\nextends = "gone.toml"\n') == ['r.toml:2:1: extends: no file "gone.toml"']
    assert faulty("extends = 3\n") == ["r.toml:1:1: extends: must be a string: the path of a recipe, from this file's folder"]


def test_variables_fill_in_strings(monkeypatch: pytest.MonkeyPatch, reading: Read) -> None:
    """Set, unset with a default, an empty default, and a `${` that is none."""
    monkeypatch.setenv("CDMKIT_A", "/data")
    text = TWO.replace('"nothing"', '"nothing", path = "${env:CDMKIT_A}/${env:CDMKIT_NO:-x:-y}${env:CDMKIT_NO:-}$${b}"')
    assert source(reading(text)).path == "/data/x:-y${b}"


def test_a_value_from_a_variable_is_not_looked_into(monkeypatch: pytest.MonkeyPatch, reading: Read) -> None:
    """References in it are text."""
    monkeypatch.setenv("CDMKIT_A", "${env:HOME}")
    assert source(reading(TWO.replace('"nothing"', '"nothing", path = "${env:CDMKIT_A}"'))).path == "${env:HOME}"


def test_variables_that_cannot_be_filled_in_are_faults(faulty: Faulty) -> None:
    """Unset without default, and what is no reference."""
    lines = faulty(TWO.replace('"nothing"', '"nothing", path = "${env:CDMKIT_NO}"') + 'upsample = "${HOME}"\n')
    assert lines == [
        "r.toml:4:30: data.source.path: environment variable CDMKIT_NO is not set: set it, or give a default: ${env:CDMKIT_NO:-default}",
        "r.toml:19:1: stage.fine.upsample: ${HOME} is not understood: "
        "only ${env:NAME} and ${env:NAME:-default} are; write $${ for a plain ${",
    ]


def test_a_variable_that_is_replaced_need_not_be_set(reading: Read) -> None:
    """Only what is left after merging is filled in."""
    text = TWO.replace('"nothing"', '"nothing", path = "${env:CDMKIT_NO}"')
    assert source(reading(text, 'data.source.path="here"')).path == "here"


@pytest.mark.parametrize("secret", ["tok-en-123", 'quo"ted\\secret'])
def test_messages_never_show_values_of_variables(monkeypatch: pytest.MonkeyPatch, faulty: Faulty, secret: str) -> None:
    """The reference stands in their stead."""
    monkeypatch.setenv("CDMKIT_TOKEN", secret)
    (line,) = faulty(TWO + 'upsample = "${env:CDMKIT_TOKEN}"\n')
    assert secret not in line
    assert '"${env:CDMKIT_TOKEN}"' in line


def test_messages_never_show_passwords_and_signatures_of_urls(faulty: Faulty) -> None:
    """As in logs: what is between // and @, and what a query signs, is left out."""
    (line,) = faulty(TWO + 'upsample = "https://me:pass@host/x.tar?sig=abc"\n')
    assert "https://***@host/x.tar?sig=***" in line
    assert "pass" not in line
    assert "abc" not in line


def test_overrides_are_laid_on_the_file_in_their_order(reading: Read) -> None:
    """Numbers, strings, tables, and defaults."""
    recipe = reading(
        TWO,
        "stage.fine.condition.s=9",
        "stage.fine.condition.s = 10",
        'stage.base.schedule={type="curve", timesteps=50}',
        'data."source".path = "a=b"',
        "defaults.stage.train.batch=2",
    )
    assert recipe.stage["fine"].condition.s == 10
    assert recipe.stage["base"].schedule == Curve(timesteps=50)
    assert source(recipe).path == "a=b"
    assert recipe.stage["base"].train.batch == 2


def test_faults_of_overrides_name_the_option(faulty: Faulty) -> None:
    """A wrong value, an unknown key, and a table that an override breaks."""
    lines = faulty(TWO, "stage.fine.train.batch=0", "stage.fine.trian.batch=2", "stage.fine.augment=[]")
    assert lines == [
        "--set stage.fine.train.batch: stage.fine.train.batch: 0 is out of range: it must be >= 1",
        '--set stage.fine.trian.batch: stage.fine.trian: unknown key; did you mean "train"?',
    ]
    (line,) = faulty(TWO, "stage.fine.augment=[]")
    assert line.startswith("--set stage.fine.augment: stage.fine: condition.s = 5 needs an augmentation that noises")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stage.base.upsample=area",
            """area is not a TOML value; a string needs quotes, kept from the shell: --set 'stage.base.upsample="area"'""",
        ),
        ("seed=", "nothing is not a TOML value"),
        ("seed", "must be key.path=value"),
        ("=1", "must be key.path=value"),
        ("[stage]=1", "must be key.path=value"),
        ("seed=1\nname='x'", "must be key.path=value"),
        ("a b=1", "a b is not a key path"),
        ("stage..base=1", "stage..base is not a key path"),
    ],
)
def test_overrides_that_are_none(faulty: Faulty, override: str, message: str) -> None:
    """The message says how to write it."""
    (line,) = faulty(TWO, override)
    assert line.startswith("--set")
    assert message in line


def test_names_with_spaces_and_letters_beyond_ascii_work_as_paths(write: Write, plugins: Plugins) -> None:
    """A folder may be called anything."""
    write(TWO, "ein ordner/größe 😀.toml")
    path = write('extends = "größe 😀.toml"\n', "ein ordner/r.toml")
    assert read(Path(os.path.abspath(path)), plugins) == read("ein ordner/größe 😀.toml", plugins)


def test_a_recipe_need_not_say_what_has_a_default(reading: Read) -> None:
    """Three lines for a stage are a whole recipe, and what it says beats the default: another type replaces, other options merge."""
    stage = '[stage.base]\nresolution = 8\nbackbone = { type = "tiny" }\ntrain = { batch = 8, steps = 100 }\n'
    recipe = reading('schema = 1\nname = "short"\n' + stage)
    assert recipe.data.source.type_name == "shapes"
    assert recipe.stage["base"].sampler.type_name == "ddim"
    said = reading('schema = 1\nname = "short"\n' + stage + 'sampler = { steps = 7 }\nschedule = { type = "line" }\n').stage["base"]
    assert (to_table(said.sampler)["type"], to_table(said.sampler)["steps"]) == ("ddim", 7)
    assert said.schedule.type_name == "line"


def test_set_does_not_make_stages(faulty: Faulty) -> None:
    """A misspelt stage is said to be one, not half a stage found wanting."""
    assert faulty(TWO, "stage.bas.train.steps=3") == [
        '--set stage.bas.train.steps: stage.bas: there is no stage "bas"; did you mean "base"?'
    ]
