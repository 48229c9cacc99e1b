"""Write the reference pages that follow from the code: `python docs/generate.py`, or with `--check` only say which are out of date.

Needs nothing but cdmkit. Only built-in components are written down, whatever plugins are installed.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import attrs
import click
import tomli

from cdmkit import diffusion, draws, errors, events, hookspecs, kinds
from cdmkit.cli import COMMANDS, main
from cdmkit.cli.components import type_words
from cdmkit.component import Component, option_of
from cdmkit.plugins import load_plugins
from cdmkit.recipe import Recipe
from cdmkit.recipe.reading import DEFAULTS
from cdmkit.recipe.schema import default_of
from cdmkit.recipe.write import as_toml, to_table
from cdmkit.training.stopping import SECOND_SIGNAL

FOLDER = Path(__file__).parent / "reference"

Lines = Iterator[str]

_NOTE = "<!-- Written by `python docs/generate.py` from the code. Change the docstrings there, not this file. -->"

HANDED = (
    draws.Draw,
    kinds.Visit,
    kinds.Timesteps,
    kinds.Augmented,
    kinds.NetworkSpec,
    kinds.Batch,
    kinds.Skip,
    kinds.DataCard,
    kinds.Batches,
    kinds.Original,
    kinds.Originals,
    kinds.Session,
)
"""What components are given and give back beside what `cdmkit.diffusion` has, in the order of the kinds that need it."""


# What the code says of itself


def docs(of: object) -> str:
    """The docstring, its lines joined to paragraphs."""
    text = inspect.getdoc(of) or ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def body(cls: type[Any]) -> list[ast.stmt]:
    """The statements of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)  # noqa: S101  (for the type checker)
    return tree.body


def notes(cls: type[Any]) -> dict[str, str]:
    """The string below each attribute of a class, which says what it is; empty where there is none."""
    found, name = {}, ""
    for statement in body(cls):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = ""
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                found[name] = " ".join(text.split())
    return {name: text for name, text in found.items() if not name.startswith("_")}


def types_of(cls: type[Any]) -> dict[str, str]:
    """The type of each attribute of a class, as it is written there."""
    fields = (statement for statement in body(cls) if isinstance(statement, ast.AnnAssign))
    return {field.target.id: ast.unparse(field.annotation) for field in fields if isinstance(field.target, ast.Name)}


def methods(cls: type[Any]) -> Lines:
    """A list item for each public method of a class: how it is called and what it is for."""
    for statement in body(cls):
        if isinstance(statement, ast.FunctionDef) and (statement.name == "__call__" or not statement.name.startswith("_")):
            decorators = {ast.unparse(decorator) for decorator in statement.decorator_list}
            given = ast.unparse(statement.args).removeprefix("self").removeprefix("cls").removeprefix(", ")
            call = statement.name if "property" in decorators else f"{statement.name}({given})"
            must = " (to be written)" if "abstractmethod" in decorators else ""
            text = docs(getattr(cls, statement.name)).replace("\n\n", "\n\n  ")
            yield f"- `{call} -> {ast.unparse(statement.returns) if statement.returns else None}`{must}: {text}"


def options(cls: type[Any]) -> Iterator[tuple[str, Any, str, str, str]]:
    """Name, type, default, range and meaning of each option of a component or table."""
    for field in attrs.fields(attrs.resolve_types(cls)):
        if known := option_of(field):
            default = default_of(field)
            missing = "required" if field.default is attrs.NOTHING else "none"
            shown = "" if is_table(field.type) else missing if default is None else f"`{as_toml(to_table(default))}`"
            yield field.name, field.type, shown, known.range, known.help


def is_table(cls: Any) -> bool:
    """Whether a type is a plain table of a recipe."""
    return isinstance(cls, type) and attrs.has(cls) and not issubclass(cls, Component)


def given(path: str | None, name: str) -> str:
    """What cdmkit's own defaults say of a key of the table at `path`, as TOML; empty where they say nothing, or only of keys below it."""
    value: Any = {} if path is None else tomli.loads(DEFAULTS.read_text(encoding="utf-8"))
    for step in f"{path}.{name}".removeprefix(".").replace("stage.<name>", "defaults.stage").split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None or (isinstance(value, dict) and "type" not in value) else f"`{as_toml(value)}`"


def parts(cls: Any) -> Iterator[Any]:
    """The classes that an option's type is made of: an optional's, a list's items', a table's values'."""
    if get_origin(cls) is None:
        yield cls
    for part in get_args(cls):
        yield from () if part in (type(None), ...) else parts(part)


def tables(cls: type[Any] = Recipe, path: str = "") -> Iterator[tuple[str, type[Any]]]:
    """The tables of a recipe with their paths, in the order of the keys."""
    yield path, cls
    for name, kind, *_ in options(cls):
        for part in parts(kind):
            if is_table(part):
                step = f"{name}.<name>" if get_origin(kind) is Mapping else name
                yield from tables(part, f"{path}.{step}".removeprefix("."))


# What it looks like


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Lines:
    """A Markdown table."""
    heads = list(heads)
    yield from ("", line(heads), "|---" * len(heads) + "|")
    yield from map(line, rows)
    yield ""


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def type_cell(cls: Any) -> str:
    """The type of an option, kinds and tables linked to where they are told of."""
    *_, part = parts(cls)
    if get_origin(cls) is Mapping:
        return f"tables of {type_cell(part)}"
    if get_origin(cls) is tuple:
        return f"list of {type_cell(part)}"
    if get_origin(cls) in (Union, types.UnionType):
        return type_cell(part)
    if issubclass(part, Component):
        return f"[{part.kind}](components.md#{part.kind})"
    if attrs.has(part):
        return f"[{part.__name__}](recipe.md#{part.__name__.lower()})"
    return type_words(part)


def option_table(cls: type[Any], path: str | None = None) -> Lines:
    """The options of a component, or of the table at `path` of a recipe; then what the values of its choices mean."""
    rows = list(options(cls))
    if not rows:
        yield from ("", "It has no options.", "")
        return
    cells = ((f"`{name}`", type_cell(kind), given(path, name) or default, bounds, text) for name, kind, default, bounds, text in rows)
    yield from table(("option" if path is None else "key", "type", "default", "range", "meaning"), cells)
    choices = {part: name for name, kind, *_ in rows for part in parts(kind) if issubclass(part, Enum)}
    for choice, name in choices.items():
        if any(notes(choice).values()):
            yield f"Values of `{name}`:\n"
            yield from (f'- `"{member.value}"`: {notes(choice)[member.name]}'.removesuffix(": ") for member in choice)
            yield ""


# The pages


def components() -> Lines:
    """Every kind with its contract, and every built-in component with its options."""
    offered = [component for plugin in load_plugins().loaded if plugin.identity.builtin for component in plugin.components]
    yield "# Components\n\n" + _NOTE + "\n"
    yield "A component is a named choice of one kind. A recipe names it by `type`; the other keys of that table are its options:\n"
    yield '```toml\nsampler = { type = "ddim", steps = 40 }\n```\n'
    yield "`cdmkit components` lists what is installed on your machine, with what plugins add. How to write one:"
    yield "[your first plugin](../tutorial/first-plugin.md)."
    rows = (
        (
            f"[{name}](#{name})",
            docs(kind).partition("\n")[0],
            " ".join(f"[`{c.type_name}`](#{anchor(c)})" for c in offered if c.kind == name),
        )
        for name, kind in kinds.KINDS.items()
    )
    yield from table(("kind", "what it is", "built in"), rows)
    for name, kind in kinds.KINDS.items():
        yield f"## {name}\n\n{docs(kind)}\n"
        yield f"Stands in a recipe under {', '.join(places(kind))}. Contract: `cdmkit.kinds.{kind.__name__}`.\n"
        yield from methods(kind)
        yield from attributes(kind)
        for component in (c for c in offered if c.kind == name):
            yield f'\n### {name} {component.type_name}\n\n{docs(component)}\n\n`type = "{component.type_name}"`, offered by cdmkit.'
            yield from option_table(component)
    yield "## What components are given and give back\n"
    yield "`Process`, `Point`, `Noised`, `Output`, `Denoised` and the like are told of on [the algebra's page](algebra.md)."
    for cls in HANDED:
        yield f"\n### {cls.__name__}\n\n`{cls.__module__}.{cls.__name__}`. {docs(cls)}\n"
        yield from attributes(cls)
        yield from methods(cls)


def algebra() -> Lines:
    """Every public name of `cdmkit.diffusion`."""
    yield "# The algebra\n\n" + _NOTE + "\n"
    yield docs(diffusion) + "\n"
    yield ALGEBRA
    public = {name: getattr(diffusion, name) for name in diffusion.__all__}
    rows = ((f"[`{name}`](#{name.lower()})", meaning(name, of).partition("\n")[0]) for name, of in public.items())
    yield from table(("name", "what it is"), rows)
    for name, of in public.items():
        yield f"\n## {name}\n"
        if inspect.isfunction(of):
            yield f"`{name}{inspect.signature(of)}`\n".replace("'", "")
        yield meaning(name, of) + "\n"
        if inspect.isclass(of) and issubclass(of, Enum):
            yield from (f'- `{member.name}`, in recipes `"{member.value}"`: {notes(of)[member.name]}'.removesuffix(": ") for member in of)
        elif inspect.isclass(of):
            yield from attributes(of)
        if inspect.isclass(of):
            yield from methods(of)


def meaning(name: str, of: Any) -> str:
    """What a public name says of itself; a type's alias says it in the string below it."""
    if inspect.isclass(of) or inspect.isfunction(of):
        return docs(of)
    tree = ast.parse(inspect.getsource(diffusion.denoiser))
    below = {ast.unparse(a.targets[0]): b for a, b in pairwise(tree.body) if isinstance(a, ast.Assign)}
    said = below[name]
    assert isinstance(said, ast.Expr)  # noqa: S101  (for the type checker)
    return f"A callable. {' '.join(ast.literal_eval(said.value).split())}"


ALGEBRA = """\
It needs no recipe and no training. Here a network that knows nothing is sampled in float64, with noise of one's own:

```python
import torch

from cdmkit.builtin.samplers import Ddim
from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Condition, Denoiser, Parameterization, Prediction

noise = torch.randn(51, 4, 3, 32, 32, dtype=torch.float64)


def network(x_t, level, condition):  # told the original timestep, 1 to T
    return torch.zeros_like(x_t)


denoise = Denoiser(network, Parameterization(Prediction.EPSILON)).bind(Condition())
process = Cosine(timesteps=1000).process()
images = Ddim(steps=50, eta=0.5)(denoise, noise[0], process, lambda k: noise[k], stop_at=0)
```

What is chosen where published codes differ: [where codes differ](../explanation/where-codes-differ.md).
"""


def anchor(component: type[Component]) -> str:
    """Where a component is told of on its page."""
    return f"{component.kind}-{component.type_name}"


def places(kind: type[Component]) -> Lines:
    """The keys under which a component of a kind can stand."""
    inner = ((c.kind, c) for plugin in load_plugins().loaded if plugin.identity.builtin for c in plugin.components)
    found = [f"`{path}.{name}`" for path, cls in (*tables(), *inner) for name, of, *_ in options(cls) if kind in parts(of)]
    yield from dict.fromkeys(found)


def attributes(cls: type[Any]) -> Lines:
    """A list item for each attribute of a class: its type and what it is."""
    said = notes(cls)
    for name, annotation in types_of(cls).items():
        yield f"- `{name}: {annotation}`: {said[name]}".removesuffix(": ")


def recipe() -> Lines:
    """Every table and key of a recipe."""
    yield "# The recipe\n\n" + _NOTE + "\n"
    yield "A recipe is one TOML file. Every key is listed here; any other is a fault, told with its line and the nearest valid key."
    yield "[Your first recipe](../tutorial/first-recipe.md) shows how one is written; `cdmkit show` prints one with every key spelled out."
    yield from table(("table", "what it is"), ((f"[{header(path)}](#{cls.__name__.lower()})", docs(cls)) for path, cls in tables()))
    yield LAYERS
    yield f"```toml\n{DEFAULTS.read_text(encoding='utf-8').strip()}\n```\n"
    for path, cls in tables():
        yield f"\n## {cls.__name__}\n\n{header(path)}.{' ' + docs(cls) if path else ''}"
        yield from option_table(cls, path)


def header(path: str) -> str:
    """How a table of a recipe begins."""
    return f"`[{path}]`" if path else "The keys at the top of the file"


LAYERS = """\
## How a recipe is put together

1. `extends = "other.toml"` at the top names the recipe that this one is laid on; the path starts at this file's folder.
2. What the file itself says lies on that.
3. `--set key.path=value` on the command line lies on both, in the order given. The value is TOML, so a string needs quotes.

Laying on: tables merge key by key. Anything else replaces what was there: a number, a list, or a component of another `type` with all
its options. At last `[defaults.stage]` is laid *under* every stage: what a stage says itself wins, wherever it was said.

Strings may hold `${env:NAME}` or `${env:NAME:-default}`, replaced by the environment variable. `$${` is a plain `${`.

What no recipe needs to say lies under all of this:
"""


def commands() -> Lines:
    """Every command with its options."""
    yield "# Commands\n\n" + _NOTE + "\n"
    yield "Results (a path, a table, JSON) go to stdout, everything else to stderr. [Exit codes](exit-codes.md) tell what went wrong."
    yield from table(("command", "what it does"), ((f"[`cdmkit {name}`](#cdmkit-{name})", text) for name, (_, text) in COMMANDS.items()))
    yield from all_of(main, click.Context(main, info_name="cdmkit", **main.context_settings), "cdmkit")
    yield "## Environment variables\n"
    yield "- `CDMKIT_CACHE`: for fetched shards and for indices; else `$XDG_CACHE_HOME/cdmkit`, else `~/.cache/cdmkit`."
    yield "- `CDMKIT_TRACEBACK=1`: print the traceback of every error, too."
    yield "- `NO_COLOR`: no colours on a terminal."
    yield "- What a recipe reads by `${env:NAME}`, such as `CDMKIT_DATA` in the recipes for ImageNet."


def all_of(found: click.Command, context: click.Context, name: str) -> Lines:
    """A command, and all those within it."""
    yield from command(found, context, name)
    if isinstance(found, click.Group):
        for each in found.list_commands(context):
            within = found.get_command(context, each)
            if within is not None:
                yield from all_of(within, click.Context(within, info_name=each, parent=context), f"{name} {each}")


def command(found: click.Command, context: click.Context, name: str) -> Lines:
    """A command: its usage, its help, its options."""
    usage = " ".join(found.collect_usage_pieces(context))
    yield f"\n## {name}\n\n```text\n{name} {usage}\n```\n\n{docs(types.SimpleNamespace(__doc__=found.help))}\n"
    rows = []
    for parameter in found.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            rows.append((f"`{record[0]}`", record[1]))
    yield from table(("option", "meaning"), rows)


def hooks() -> Lines:
    """Every hook, with the fields of its event."""
    specified = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("cdmkit_")}
    told = {
        hookspecs.hook_name(event): event for event in vars(events).values() if inspect.isclass(event) and issubclass(event, events.Event)
    }
    yield "# Hooks\n\n" + _NOTE + "\n"
    yield WATCHING
    yield from table(("hook", "event", "when"), ((f"[`{n}`](#{n})", event_link(told.get(n)), docs(h)) for n, h in specified.items()))
    for name, hook in specified.items():
        yield f"\n## {name}\n\n{docs(hook)}\n\n`{name}{signature(hook)}`\n"
        if name in told:
            yield f"`cdmkit.events.{told[name].__name__}`: {docs(told[name])}"
            meaning = notes(told[name])
            heads = ("field", "type", "meaning")[: 3 if any(meaning.values()) else 2]
            yield from table(
                heads, ((f"`{field}`", f"`{kind}`", meaning[field])[: len(heads)] for field, kind in types_of(told[name]).items())
            )


def signature(hook: object) -> str:
    """A hook's arguments and result, without the quotes that annotations have."""
    return str(inspect.signature(hook)).replace("'", "")  # type: ignore[arg-type]  # a function, seen as any attribute of a module


def event_link(event: type[events.Event] | None) -> str:
    """The name of an event's class."""
    return f"`{event.__name__}`" if event else ""


WATCHING = """\
A plugin is a module with functions of these names, marked `@hookimpl`. `cdmkit_components` offers components; the others watch a run.
Watchers see what happens and change nothing: what they return is not read. Name only the argument `event`.

```python
from cdmkit.events import Progress
from cdmkit.hookspecs import hookimpl


@hookimpl
def cdmkit_progress(event: Progress) -> None:
    print(event.stage, event.step, event.loss)
```

A module becomes a plugin by an entry point of the group `cdmkit`, as in [your first plugin](../tutorial/first-plugin.md). It may say
for which version of this page it was written: `cdmkit_api = 1`. A plugin that cannot be loaded stops nobody who does not need it; what is
wrong with it stands in `cdmkit plugins`.
"""


def exit_codes() -> Lines:
    """Every exit code."""
    raised = {cls.exit_code: cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.CdmkitError)}
    known = {code: (cls.__name__, docs(cls)) for code, cls in raised.items()}
    known |= {
        0: ("", "All is well."),
        1: ("CdmkitError", "Anything else, such as a defect in cdmkit."),
        SECOND_SIGNAL: ("", "Ended at once: by the second signal to a run, or by Ctrl-C to any other command."),
    }
    yield "# Exit codes\n\n" + _NOTE + "\n"
    yield "What to do about each: [read a failing run](../how-to/read-a-failing-run.md)."
    yield from table(("code", "meaning", "class in `cdmkit.errors`"), (row(code, *known[code]) for code in sorted(known)))


def row(code: int, name: str, text: str) -> tuple[str, str, str]:
    """A row of the exit codes."""
    return f"`{code}`", text, f"`{name}`" if name else ""


PAGES: dict[str, Callable[[], Lines]] = {
    "components.md": components,
    "algebra.md": algebra,
    "recipe.md": recipe,
    "commands.md": commands,
    "hooks.md": hooks,
    "exit-codes.md": exit_codes,
}
"""The generated pages."""


def page(name: str) -> str:
    """The text of a page, with single empty lines outside of code."""
    text = "\n".join(PAGES[name]())
    return (
        re.sub(r"```.*?```|\n{3,}", lambda found: found[0] if found[0].startswith("`") else "\n\n", text, flags=re.DOTALL).rstrip() + "\n"
    )


def write(check: bool) -> list[str]:
    """Write the pages, or only look; gives the names of those that were out of date."""
    stale = [name for name in PAGES if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != page(name)]
    for name in () if check else stale:
        (FOLDER / name).write_text(page(name), encoding="utf-8")
    return stale


if __name__ == "__main__":
    checking = "--check" in sys.argv[1:]
    names = write(checking)
    if checking and names:
        sys.exit(f"out of date: {', '.join(names)}; run python docs/generate.py")
