"""Making data sets: from images in whatever order and shape they come to shuffled shards of squares.

The order is a function of the seed, and each shard one of the images at its positions. Workers make images, this process alone writes
them, in order: so the bytes depend neither on how many workers there are nor on when the work was stopped and gone on with.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from cdmkit.errors import DataError, SetupError
from cdmkit.files import write_json
from cdmkit.kinds import Preparer
from cdmkit.preparing import folder
from cdmkit.preparing.card import (
    CARD,
    REJECTS,
    Parts,
    card_faults,
    make_card,
    per_class,
    read_card,
    sealed,
    tools,
    unsealed,
    write_manifest,
    write_rejects,
)
from cdmkit.preparing.forecast import Forecast, forecast, remaining
from cdmkit.preparing.images import Maker, Outcome, Refused
from cdmkit.preparing.plan import Plan, Shard
from cdmkit.preparing.pool import outcomes, usable_cores
from cdmkit.preparing.settings import Settings
from cdmkit.preparing.write import Part, Writer, read_part, record_of

__all__ = ["MAX_REJECT", "Forecast", "Prepared", "Settings", "Step", "forecast", "per_class", "plan", "prepare", "usable_cores"]

MAX_REJECT = 0.001
"""The share of images that may be rejected, by default."""

_RESERVE = 1.1
"""Room that is asked for, in parts of what is expected."""

_OFTEN = 16
"""Images between two steps that are told; the first is told before there are any."""


class Step(NamedTuple):
    """How far a split is."""

    split: str
    done: int
    """Images that are dealt with, one way or the other."""
    total: int
    rejected: int


Tell = Callable[[Step], None]
"""Where steps are told."""


class Prepared(NamedTuple):
    """A data set that is finished."""

    path: Path
    """Its `dataset.json`."""
    card: dict[str, Any]
    made: int
    """Shards that were made just now."""


def plan(preparer: Preparer, source: Path, settings: Settings) -> tuple[Plan, dict[str, int]]:
    """The plan for what a source lists, and how many files it passed over, by why. Raises DataError and UsageError."""
    settings = settings.filled()
    listed = preparer.look(source)
    return Plan.of(preparer, listed, settings), dict(listed.passed_over)


def prepare(
    plan: Plan,
    out: Path,
    *,
    workers: int | None = None,
    max_reject: float = MAX_REJECT,
    replace: bool = False,
    tell: Tell = lambda _step: None,
) -> Prepared:
    """Make a data set in the folder `out`, or go on with it.

    workers: processes that make images, by default one per core; 0 makes them in this one. max_reject: the share of images that may be
    rejected. replace: whether to remove another data set that is there.

    Raises UsageError where `out` holds something else, SetupError where there is no room or another process is at work there, DataError
    where too many images are rejected, KeyboardInterrupt at SIGINT and SIGTERM. What is done stays, and is not done again. Workers import
    the main module: a script that calls this needs `if __name__ == "__main__":`.
    """
    with _interruptible(), folder.locked(out), folder.writing(out):
        folder.claim(out, plan, replace)
        parts = {shard: part for shard in plan.shards if (part := read_part(out, shard, plan.digest))}
        todo = [shard for shard in plan.shards if shard not in parts]
        if todo:
            workers = usable_cores() if workers is None else workers
            _check_room(out, plan, todo, workers)
            parts |= _make(plan, out, todo, parts, workers, tell)
        parts = {shard: parts[shard] for shard in plan.shards}
        card = make_card(plan, parts, out.resolve().name)
        there = read_card(out) or {}
        if todo or unsealed(there) != card or any(card_faults(out, there)):
            write_rejects(out, parts)
            _check_rejects(out, parts, plan.count, max_reject)
            write_manifest(out, parts)
            there = sealed(card, out)
            write_json(out / CARD, there)
    return Prepared(out / CARD, there, len(todo))


def _make(plan: Plan, out: Path, todo: list[Shard], done: Parts, workers: int, tell: Tell) -> dict[Shard, Part]:
    """Make the shards that are not done."""
    split_of = {split.name: split for split in plan.splits}
    originals = (original for shard in todo for original in split_of[shard.split].at(shard.first, shard.count))
    side = next((part.side for part in done.values()), None)
    writer = Writer(out, plan.digest, tools(), side)
    progress = {split.name: _Progress(split.name, len(split.originals), done, tell) for split in plan.splits}
    parts: dict[Shard, Part] = {}
    with outcomes(Maker(plan.preparer, plan.settings), originals, workers) as made:
        for shard in todo:
            images = zip(split_of[shard.split].at(shard.first, shard.count), made, strict=False)  # ends with the shard
            with _alive(shard.file):
                parts[shard] = writer.write(shard, progress[shard.split].through(images))
    return parts


class _Progress:
    """Counts the images of a split."""

    def __init__(self, split: str, total: int, done: Parts, tell: Tell) -> None:
        self._split = split
        self._total = total
        self._done = sum(shard.count for shard in done if shard.split == split)
        self._rejected = sum(len(part.rejected) for shard, part in done.items() if shard.split == split)
        self._tell = tell
        self._begun = False

    def through(self, images: Iterator[tuple[Any, Outcome]]) -> Iterator[tuple[Any, Outcome]]:
        """The same images, counted as they pass."""
        if not self._begun:
            self._say()
        self._begun = True
        for image in images:
            yield image
            self._done += 1
            self._rejected += isinstance(image[1], Refused)
            if self._done % _OFTEN == 0 or self._done == self._total:
                self._say()

    def _say(self) -> None:
        self._tell(Step(self._split, self._done, self._total, self._rejected))


@contextlib.contextmanager
def _alive(what: str) -> Iterator[None]:
    """Tell what the death of a worker means."""
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            f"{what}: a worker process died while images for it were made, killed for want of memory or by an image that its decoder "
            "cannot bear. The same command goes on from here; fewer --workers need less memory"
        ) from error


def _check_room(out: Path, plan: Plan, todo: list[Shard], workers: int) -> None:
    """Refuse to begin what will not fit."""
    with _alive(todo[0].file):
        expected = forecast(plan, workers)
    needed = round(remaining(expected, todo) * _RESERVE)
    free = folder.free_space(out)
    if needed > free:
        raise SetupError(
            f"{out}: about {needed:,} bytes are needed, but {free:,} are free on this disk: make room, or choose another folder"
        )


def _check_rejects(out: Path, parts: Parts, count: int, most: float) -> None:
    """Refuse a data set that lacks too many of its images.

    What might be read another time is forgotten, so that it is tried when the command is run again.
    """
    rejected = [each for part in parts.values() for each in part.rejected]
    if len(rejected) <= most * count and len(rejected) < count:
        return
    folder.discard(record_of(out, shard) for shard, part in parts.items() if any(each.passing for each in part.rejected))
    causes = Counter(each.cause for each in rejected).most_common(3)
    raise DataError(
        f"{len(rejected):,} of {count:,} images are rejected, and --max-reject {most:g} allows {int(most * count):,}: "
        f"{out / REJECTS} lists them all; most often: {'; '.join(f'{cause} ({times:,})' for cause, times in causes)}. "
        "Mend the source, or allow more: what is done stays"
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
