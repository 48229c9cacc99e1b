"""`cdmkit data prepare`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdmkit.cli.options import json_option, loaded_plugins, print_json, print_table
from cdmkit.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from cdmkit.catalog import Catalog
    from cdmkit.cli.bars import Bars
    from cdmkit.preparing import Prepared, Step
    from cdmkit.preparing.plan import Plan

T = TypeVar("T")

_MOST_CLASSES = 20
"""Classes that are listed one by one."""


@click.command()
@click.argument("kind")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--set", "options", metavar="NAME=VALUE", multiple=True, help="An option of the preparer. The value is TOML: strings need quotes."
)
@click.option("--resolution", type=int, metavar="S", help="Make squares of S x S pixels. Without it, files are kept as they are.")
@click.option("--crop", metavar="NAME", help="The way to the square: adm, biggan, area or lanczos; adm by default.")
@click.option("--min-side", type=int, metavar="N", help="Reject images whose short side is below N, instead of enlarging them.")
@click.option("--encoding", metavar="NAME", help="png or jpeg; by default png up to 64 pixels, jpeg above.")
@click.option("--per-shard", type=int, metavar="N", help="Images per shard; 10000 by default.")
@click.option("--min-shards", type=int, metavar="N", help="Make at least N shards of each split: 4 x ranks x loader workers.")
@click.option("--seed", type=int, metavar="N", help="Decides the order that images are shuffled into; 0 by default.")
@click.option("--max-pixels", type=int, metavar="N", help="Reject images of more pixels, unread; 67108864 by default.")
@click.option("--exif", metavar="NAME", help="Whether to turn images as their EXIF data say: ignore (the default) or apply.")
@click.option("--license", "license", metavar="TEXT", help="Under what terms the images are to be had: noted in dataset.json.")
@click.option("--workers", type=click.IntRange(0, 1024), metavar="N", help="Processes that make images; by default one per core.")
@click.option(
    "--max-reject", type=click.FloatRange(0, 1), default=0.001, show_default=True, help="The share of images that may be unusable."
)
@click.option("--replace", is_flag=True, help="Remove the data set that is in OUT, and begin anew.")
@click.option("--check", is_flag=True, help="Read the shards that are done, and make anew those that are not as they were written.")
@click.option("--dry-run", is_flag=True, help="Tell what would be made, from a few images; write nothing.")
@json_option
def prepare(
    kind: str,
    source: Path,
    out: Path,
    options: tuple[str, ...],
    workers: int | None,
    max_reject: float,
    replace: bool,
    check: bool,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make shards in the folder OUT of the images in SRC, as the preparer KIND reads them: folder, imagenet, lsun, cifar10 or shards, and
    what plugins bring (`cdmkit components preparer` lists all).

    Prints the path of OUT/dataset.json, which is written last. Stopped at any instant, the same command goes on where it was, and ends
    with the same bytes; so it does with any number of workers. Images that cannot be used are listed in OUT/rejects.tsv.
    """
    from cdmkit import preparing
    from cdmkit.cli.bars import Bars

    catalog = loaded_plugins().catalog
    values = {name: value for name, value in given.items() if value is not None}
    settings = _structured(values, preparing.Settings, catalog, "--")
    plan, passed_over = preparing.plan(_preparer(kind, options, catalog), source, settings)
    for why, count in passed_over.items():
        click.echo(f"passed over: {why} ({count:,})", err=True)
    for split in plan.splits:
        if len(split.shards) < settings.min_shards:
            click.echo(f"{split.name}: too few images for --min-shards {settings.min_shards:,}: {len(split.shards):,}", err=True)
    if dry_run:
        _forecast(plan, out, max_reject, replace, as_json)
        return
    with Bars() as bars, _told_how_far(plan, out, replace, as_json):
        made = preparing.prepare(plan, out, workers=workers, max_reject=max_reject, replace=replace, check=check, tell=Pace(bars))
    _tell(made)
    print_json({"dataset": str(made.path), **made.card}) if as_json else click.echo(str(made.path))


@contextlib.contextmanager
def _told_how_far(plan: Plan, out: Path, replace: bool, as_json: bool) -> Iterator[None]:
    """Say what is done where the work is stopped, and print counts where it is in vain."""
    from cdmkit.preparing import TooManyRejects, finished_shards

    try:
        yield
    except TooManyRejects as error:
        if as_json:
            print_json({"dataset": None, **error.table})
        raise
    except KeyboardInterrupt:
        again = "the same command without --replace" if replace else "the same command"
        click.echo(f"interrupted: {finished_shards(out):,} of {len(plan.shards):,} shards are done; {again} goes on from there", err=True)
        raise click.exceptions.Exit(130) from None


def _preparer(kind: str, options: tuple[str, ...], catalog: Catalog) -> Any:
    """The preparer of a name, with its options."""
    import tomli

    try:
        cls = catalog.find("preparer", kind)
    except RecipeError as error:
        raise UsageError(f"{error} (known: {', '.join(catalog.names('preparer'))})") from None
    values: dict[str, Any] = {}
    for text in options:
        try:
            name, _, value = (part.strip() for part in text.partition("="))
            values |= tomli.loads(f"{name} = {value}")
        except (ValueError, RecursionError):
            raise UsageError(f"--set {text}: must be NAME=VALUE with a TOML value; a string needs quotes, kept from the shell") from None
    return _structured(values, cls, catalog, "--set ")


def _structured(values: dict[str, Any], cls: type[T], catalog: Catalog, prefix: str) -> T:
    """The table or component with these values, or a UsageError with all that is wrong with them."""
    from cdmkit.recipe.faults import dotted
    from cdmkit.recipe.structure import structure

    made = structure(values, cls, catalog)
    if isinstance(made, list):
        lines = (f"{prefix}{dotted(each.path) if prefix.endswith(' ') else _flag(each.path)}: {each.text}" for each in made)
        raise UsageError("\n".join(lines))
    return made


def _flag(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path)).replace("_", "-")


def _forecast(plan: Plan, out: Path, max_reject: float, replace: bool, as_json: bool) -> None:
    """What would be made, what of the source cannot be used, and whether there is room."""
    import attrs

    from cdmkit.preparing import forecast
    from cdmkit.preparing.folder import free_space, obstacle
    from cdmkit.preparing.rejects import advice, often, total

    expected, refused = forecast(plan), obstacle(plan, out, replace)
    needed, free = sum(each.bytes for each in expected.values()), free_space(out)
    tried, causes = total(expected)
    beyond = causes.total() > max_reject * tried
    if as_json:
        splits = {name: attrs.asdict(each) for name, each in expected.items()}
        told = {"splits": splits, "bytes": needed, "free": free, "rejected_beyond_limit": beyond, "obstacle": refused}
        print_json({"classes": len(plan.classes), **told})
        return
    rows = ((name, f"{f.images:,}", f"{f.shards:,}", _size(f.bytes), f"{f.rejected} of {f.tried}") for name, f in expected.items())
    print_table(("split", "images", "shards", "about", "rejected of those tried"), rows)
    classes = f"{len(plan.classes):,} class{'es' if len(plan.classes) != 1 else ''}"
    click.echo(f"{classes}; about {_size(needed)} in all, {_size(free)} free{'' if needed < free else ': too little room'}")
    if causes:
        click.echo(f"rejected most often: {often(causes)}.{advice(plan, causes)}")
    if beyond:
        click.echo(f"that share is more than --max-reject {max_reject:g} allows")
    if refused:
        click.echo(refused)


def _size(count: float) -> str:
    """1,500,000 as 1.5 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _tell(made: Prepared) -> None:
    """Say what a data set holds, on stderr."""
    from cdmkit.preparing import per_class
    from cdmkit.preparing.rejects import counted

    if made.note:
        click.echo(f"{made.path.parent}: {made.note}", err=True)
    for name, split in made.card["splits"].items():
        kept = f"{counted(split['samples'])} in {counted(len(split['shards']), 'shard')}"
        click.echo(f"{name}: {kept}, {split['rejected']:,} rejected, {split['enlarged']:,} enlarged", err=True)
    counts = {name: each for name, each in per_class(made.card).items() if any(each)}
    names = made.card["classes"]
    if counts and len(names) <= _MOST_CLASSES:
        for label, name in enumerate(names):
            click.echo(f"class {label} ({name}): {', '.join(f'{each[label]:,} {split}' for split, each in counts.items())}", err=True)
        return
    for split, each in counts.items():
        few, many = each.index(min(each)), each.index(max(each))
        facts = f"{each[few]:,} ({names[few]}) to {each[many]:,} ({names[many]}) images"
        if each[few] == each[many]:
            facts = f"{counted(each[few])} each"
        empty = each.count(0)
        click.echo(f"{split}: {len(names):,} classes of {facts}; {empty:,} {'is' if empty == 1 else 'are'} empty", err=True)


class Pace:
    """Shows the steps of the work: how fast each split goes, and how long it will take."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._split = ""
        self._first = 0
        self._began = 0.0

    def __call__(self, step: Step) -> None:
        """Show a step."""
        now = time.monotonic()
        if step.split != self._split:
            self._split, self._first, self._began = step.split, step.done, now
        rate = (step.done - self._first) / max(now - self._began, 1e-9)
        left = (step.total - step.done) / rate if rate and step.done < step.total else None
        rejected = f"  {step.rejected:,} rejected" if step.of == "images" else ""
        self._bars.advance(step.split, step.done, step.total, f"{rate:.0f} {step.of}/s{rejected}", left)
