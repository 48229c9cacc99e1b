"""The documentation is complete, current, and works when it is followed."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import runpy
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import tomli
import torch
from PIL import Image

from cdmkit import diffusion, errors, events, hookspecs
from cdmkit.cascade import Handover, Stage, Training
from cdmkit.cli import main
from cdmkit.component import option_of
from cdmkit.data.shards import open_shards
from cdmkit.kinds import KINDS
from cdmkit.plugins import load_plugins
from cdmkit.recipe import Data, Recipe, Requires, Sample, Validation
from cdmkit.training.stopping import SECOND_SIGNAL
from tests.markdown import DOCS, PAGES, ROOT, Block, anchors, blocks, commands, links
from tests.progress import progress
from tests.tiny import call

FOLLOWED = [DOCS / "tutorial" / "first-recipe.md", DOCS / "tutorial" / "first-plugin.md"]
"""Pages whose files are saved, whose cheap commands are run, and whose outputs are compared."""

CONTEXT = click.Context(main, **main.context_settings)

CHEAP = {"validate", "show", "plan", "components"}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text(encoding="utf-8")


def options(cls: type[Any]) -> list[str]:
    return [field.name for field in attrs.fields(cls) if option_of(field)]


def shell(page: Path) -> list[Block]:
    """The blocks of commands of a page."""
    return [block for block in blocks(page) if block.language in ("sh", "shell")]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {heading!r}"
    return found[1]


# Complete and current


def test_generated_pages_are_current() -> None:
    """`python docs/generate.py` would change nothing."""
    generate = runpy.run_path(str(DOCS / "generate.py"))
    assert generate["write"](True) == [], "run python docs/generate.py"


def test_every_kind_component_and_option_is_documented() -> None:
    """A heading for each kind and each component, a row for each option."""
    text = reference("components.md")
    for kind in KINDS:
        assert section(text, kind)
    for plugin in load_plugins().loaded:
        for component in plugin.components if plugin.identity.builtin else ():
            told = section(text, f"{component.kind} {component.type_name}")
            assert [name for name in options(component) if f"\n| `{name}` |" not in told] == []


@pytest.mark.parametrize("table", [Recipe, Requires, Data, Validation, Stage, Handover, Training, Sample], ids=lambda table: table.__name__)
def test_every_key_of_a_recipe_is_documented(table: type[Any]) -> None:
    """A heading for each table, a row for each key."""
    told = section(reference("recipe.md"), table.__name__)
    assert [key for key in options(table) if f"\n| `{key}` |" not in told] == []


def every_command(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group and those within them, with all the words that call them."""
    for each in group.list_commands(CONTEXT):
        command = group.get_command(CONTEXT, each)
        assert command is not None, each
        yield f"{name} {each}", command
        if isinstance(command, click.Group):
            yield from every_command(command, f"{name} {each}")


def test_every_command_and_option_is_documented() -> None:
    """A heading for each command, a row for each of its options."""
    for name, command in every_command(main, "cdmkit"):
        told = section(reference("commands.md"), name)
        given = [text for parameter in command.params if isinstance(parameter, click.Option) for text in parameter.opts]
        assert [text for text in given if f"| `{text}" not in told] == []


def test_every_name_of_the_algebra_is_documented() -> None:
    """A heading for each public name of `cdmkit.diffusion`."""
    text = reference("algebra.md")
    assert all(section(text, name) for name in diffusion.__all__)


def test_every_hook_and_event_is_documented() -> None:
    """A heading for each hook, with its event and a row for each of its fields."""
    text = reference("hooks.md")
    for name in vars(hookspecs):
        assert not name.startswith("cdmkit_") or section(text, name)
    for event in events.Event.__subclasses__():
        told = section(text, hookspecs.hook_name(event))
        assert f"cdmkit.events.{event.__name__}`" in told
        assert [field.name for field in attrs.fields(event) if f"\n| `{field.name}` |" not in told] == []


@pytest.mark.parametrize("page", ["reference/exit-codes.md", "how-to/read-a-failing-run.md"])
def test_every_exit_code_is_documented(page: str) -> None:
    """What it means, and what to do about it."""
    codes = {cls.exit_code for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.CdmkitError)}
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [code for code in sorted({*codes, SECOND_SIGNAL}) if f"\n| `{code}` |" not in text] == []


def test_every_file_of_a_run_is_documented(trained: Path) -> None:
    """By its name in the run folder of a finished run."""
    text = reference("run-folder.md")
    names = {re.sub(r"\d{5,}", "N", path.name) for path in trained.rglob("*") if path.is_file()}
    names = {re.sub(r"^(base|fine)(?=[-.])", "<stage>", name) for name in names}
    told = {re.sub(r"\d{5,}", "N", name.rpartition("/")[2]) for name in re.findall(r"`([^`\n]+)`", text)}
    assert names - told == set()


# Sound


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links to files and headings that are there."""
    for link in links(page):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_index() -> None:
    """Directly."""
    reached = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "index.md")}
    assert {page for page in PAGES if DOCS in page.parents} - reached == {DOCS / "index.md"}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_toml_and_python_can_be_read(page: Path) -> None:
    """Every block of them."""
    for block in blocks(page):
        if block.language == "toml":
            tomli.loads(block.text)
        if block.language == "python":
            ast.parse(block.text)


def recipes() -> Iterator[Any]:
    """Every block that is a whole recipe, but those of the pages that are followed."""
    for page in PAGES:
        for number, block in enumerate(blocks(page, "toml")):
            if page not in FOLLOWED and {"schema", "stage"} <= set(tomli.loads(block.text)):
                yield pytest.param(block, id=f"{page_name(page)}-{number}")


@pytest.mark.parametrize("block", list(recipes()))
def test_recipes_validate(block: Block, tmp_path: Path) -> None:
    """Those that stand alone."""
    path = tmp_path / "recipe.toml"
    path.write_text(block.text)
    result = call("validate", path)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_are_known(page: Path) -> None:
    """Every `cdmkit ...` in a block of shell is a command with options that it has."""
    for block in shell(page):
        for name, *arguments in commands(block.text):
            command = main.get_command(CONTEXT, name)
            if isinstance(command, click.Group):
                name, *arguments = arguments
                command = command.get_command(CONTEXT, name)
            assert command is not None, name
            command.make_context(name, list(arguments), parent=CONTEXT)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_make_targets_are_known(page: Path) -> None:
    """Every `make ...` in a block of shell."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in shell(page):
        assert set(re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE)) <= targets


# Works when it is followed


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to follow a page in, with the recipes that are shipped."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def save(block: Block) -> None:
    """Save a block as the file that readers are told to."""
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)


def install(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install -e` does for a project of modules: its metadata, and its folder on the path."""
    known = tomli.loads((project / "pyproject.toml").read_text())["project"]
    info = project / f"{known['name'].replace('-', '_')}-{known['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {known['name']}\nVersion: {known['version']}\n")
    lines = [f"[{group}]\n{name} = {value}\n" for group, names in known["entry-points"].items() for name, value in names.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(project)


def output(block: Block) -> str:
    """What the cheap commands of a block say."""
    said = [call(*words).output for words in commands(block.text) if words[0] in CHEAP]
    return "".join(said)


def same(expected: str, actual: str) -> bool:
    """Whether an output is the one that is printed, where `...` stands for anything and any white space for any other."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected, actual.lstrip(), flags)


def follow(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the files, install the package, run the cheap commands; compare what they say with what the page says."""
    said = ""
    for block in blocks(page):
        save(block)
        if block.language == "shell":
            if "pip install -e ./" in block.text:
                install(Path(block.text.partition("./")[2].strip()).resolve(), monkeypatch)
            said = output(block)
        if block.language == "text":
            assert same(block.text, said), f"{page.name} says\n{block.text}\nbut it is\n{said}"


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """Forget the modules that a page had us import."""
    yield
    for name in [name for name in sys.modules if "cutout" in name]:
        del sys.modules[name]


@pytest.mark.usefixtures("workplace")
def test_first_recipe_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipes say what the page says that they say."""
    follow(DOCS / "tutorial" / "first-recipe.md", monkeypatch)


@pytest.mark.usefixtures("workplace", "_forgotten")
def test_first_plugin_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is found, its recipe validates, and its own tests pass."""
    follow(DOCS / "tutorial" / "first-plugin.md", monkeypatch)
    tests = importlib.import_module("test_cutout")
    functions = [value for name, value in vars(tests).items() if name.startswith("test_")]
    assert len(functions) == 2
    for function in functions:
        function()


def test_the_observer_on_the_page_of_hooks_is_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    """It loads, and prints an event that it is told of."""
    module = types.ModuleType("observer")
    exec(next(blocks(DOCS / "reference" / "hooks.md", "python")).text, vars(module))  # noqa: S102  (our own page)
    plugins = load_plugins(extra=[module])
    assert plugins.faults == ()
    plugins.manager.hook.cdmkit_progress(event=progress(1))
    assert capsys.readouterr().out == "base 1 0.5\n"


def test_the_example_of_the_algebra_runs() -> None:
    """A sampler with noise of one's own, in float64."""
    scope: dict[str, Any] = {}
    exec(next(blocks(DOCS / "reference" / "algebra.md", "python")).text, scope)  # noqa: S102  (our own page)
    images = scope["images"]
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), torch.float64)
    assert bool(images.isfinite().all())


def test_photographs_become_shards_as_the_page_says(workplace: Path) -> None:
    """Images of two folders become square, with labels 0 and 1; the page's other commands on them work."""
    for name in ("cat", "dog"):
        (workplace / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (96, 80), "teal").save(workplace / "photos" / name / "one.jpg")
    page = DOCS / "how-to" / "prepare-images.md"
    said = [(words, call(*words)) for block in shell(page) for words in commands(block.text) if "shards/photos" in words]
    assert [words[1] for words, _ in said] == ["prepare", "inspect", "verify"]
    assert all(result.exit_code == 0 for _, result in said)
    assert said[0][1].stdout == "shards/photos/dataset.json\n"
    shards = open_shards("shards/photos/train-*.tar")
    assert (len(shards), shards.resolution, shards.classes) == (2, 64, 2)


def test_every_file_of_a_data_set_is_documented(tmp_path: Path) -> None:
    """By its name on the page that makes it."""
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (96, 80), "teal").save(tmp_path / "photos" / "cat" / "one.jpg")
    assert call("data", "prepare", "folder", tmp_path / "photos", tmp_path / "out", "--resolution", 8).exit_code == 0
    told = re.findall(r"`([^`\n]+)`", (DOCS / "how-to" / "prepare-images.md").read_text("utf-8"))
    names = {f"{path.name}/" if path.is_dir() else path.name for path in (tmp_path / "out").iterdir()}
    assert names - set(told) == {".lock"}
