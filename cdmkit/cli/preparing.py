"""`cdmkit data prepare`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdmkit.cli.options import json_option, loaded_plugins, print_json, print_table
from cdmkit.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from cdmkit.catalog import Catalog
    from cdmkit.cli.bars import Bars
    from cdmkit.preparing import Forecast, Prepared, Step
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
@click.option("--replace", is_flag=True, help="Remove the data set of other settings or images that is in OUT.")
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
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make shards in the folder OUT of the images in SRC, as the preparer KIND reads them (`cdmkit components preparer` lists those).

    Prints the path of OUT/dataset.json, which is written last. Stopped at any instant, the same command goes on where it was, and ends
    with the same bytes; so it does with any number of workers. Images that cannot be used are listed in OUT/rejects.tsv.
    """
    from cdmkit import preparing
    from cdmkit.cli.bars import Bars
    from cdmkit.preparing.folder import free_space

    catalog = loaded_plugins().catalog
    values = {name: value for name, value in given.items() if value is not None}
    settings = _structured(values, preparing.Settings, catalog, "--")
    plan, passed_over = preparing.plan(_preparer(kind, options, catalog), source, settings)
    for why, count in passed_over.items():
        click.echo(f"passed over: {why} ({count:,})", err=True)
    if dry_run:
        _print_forecast(plan, preparing.forecast(plan), free_space(out), as_json)
        return
    with Bars() as bars:
        made = preparing.prepare(plan, out, workers=workers, max_reject=max_reject, replace=replace, tell=Pace(bars))
    _tell(made)
    print_json({"dataset": str(made.path), **made.card}) if as_json else click.echo(str(made.path))


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


def _print_forecast(plan: Plan, expected: dict[str, Forecast], free: int, as_json: bool) -> None:
    """What would be made, and whether there is room."""
    import attrs

    needed = sum(each.bytes for each in expected.values())
    if as_json:
        splits = {name: attrs.asdict(each) for name, each in expected.items()}
        print_json({"classes": len(plan.classes), "splits": splits, "bytes": needed, "free": free})
        return
    rows = ((name, f"{f.images:,}", f"{f.shards:,}", _size(f.bytes), f"{f.rejected} of {f.tried}") for name, f in expected.items())
    print_table(("split", "images", "shards", "about", "rejected of those tried"), rows)
    click.echo(f"{len(plan.classes):,} classes; about {_size(needed)} in all, {_size(free)} free")


def _size(count: float) -> str:
    """1,500,000 as 1.5 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _tell(made: Prepared) -> None:
    """Say what a data set holds, on stderr."""
    from cdmkit.preparing import per_class

    if not made.made:
        click.echo(f"{made.path.parent}: finished already, unchanged", err=True)
    for name, split in made.card["splits"].items():
        shards = len(split["shards"])
        kept = f"{split['samples']:,} images in {shards:,} shard{'s' if shards > 1 else ''}"
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
        click.echo(f"{split}: {len(names):,} classes of {facts}; {each.count(0):,} are empty", err=True)


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
        self._bars.advance(step.split, step.done, step.total, f"{rate:.0f} images/s  {step.rejected:,} rejected", left)
