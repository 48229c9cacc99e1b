"""Making data sets: from images in whatever order and shape they come to shuffled shards of squares.

The order is a function of the seed, and each shard one of the images at its positions. Workers make images, this process alone writes
them, in order: so the bytes depend neither on how many workers there are nor on when the work was stopped and gone on with.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from cdmkit.errors import DataError, SetupError
from cdmkit.files import write_json
from cdmkit.kinds import Preparer
from cdmkit.preparing import folder
from cdmkit.preparing.card import (
    CARD,
    Parts,
    card_faults,
    make_card,
    per_class,
    read_card,
    sealed_card,
    tools,
    unsealed,
    write_manifest,
    write_rejects,
)
from cdmkit.preparing.folder import Claim
from cdmkit.preparing.forecast import Forecast, forecast, remaining
from cdmkit.preparing.images import Maker
from cdmkit.preparing.plan import Plan, Shard
from cdmkit.preparing.pool import ENDING, WorkerDied, outcomes, usable_cores
from cdmkit.preparing.rejects import Hopeless, Progress, Step, Tell, TooManyRejects, allowed, counted, often, passing_by, too_many, total
from cdmkit.preparing.settings import Settings
from cdmkit.preparing.write import PARTS, PLAN, Part, Rejected, Writer, mend_index, record_of, stands

__all__ = [
    "MAX_REJECT",
    "Forecast",
    "Prepared",
    "Settings",
    "Step",
    "TooManyRejects",
    "finished_shards",
    "forecast",
    "per_class",
    "plan",
    "prepare",
    "usable_cores",
]

MAX_REJECT = 0.001
"""The share of images that may be rejected, by default."""

_RESERVE = 1.1
"""Room that is asked for, in parts of what is expected."""


class Prepared(NamedTuple):
    """A data set that is finished."""

    path: Path
    """Its `dataset.json`."""
    card: dict[str, Any]
    made: int
    """Shards that were made just now."""
    note: str
    """What became of a data set that was finished already; empty where shards were made."""


def plan(preparer: Preparer, source: Path, settings: Settings) -> tuple[Plan, dict[str, int]]:
    """The plan for what a source lists, and how many files it passed over, by why. Raises DataError and UsageError."""
    settings = settings.filled()
    listed = preparer.look(source)
    return Plan.of(preparer, listed, settings, source), dict(listed.passed_over)


def prepare(
    plan: Plan,
    out: Path,
    *,
    workers: int | None = None,
    max_reject: float = MAX_REJECT,
    replace: bool = False,
    check: bool = False,
    tell: Tell = lambda _step: None,
) -> Prepared:
    """Make a data set in the folder `out`, or go on with it.

    workers: processes that make images, by default one per core; 0 makes them in this one. max_reject: the share of images that may be
    rejected. replace: whether to remove the data set that is there, and begin anew. check: whether to read the shards that are done, and
    make those anew that are not as they were written.

    Raises UsageError where `out` holds something else, SetupError where there is no room or another process is at work there, DataError
    where too many images are rejected, KeyboardInterrupt at SIGINT, SIGTERM and SIGHUP. What is done stays, and is not done again. Workers
    import the main module: a script that calls this needs `if __name__ == "__main__":`.
    """
    workers = usable_cores() if workers is None else workers
    with _interruptible(), folder.writing(out), folder.locked(out, plan):
        marks = plan.digests()
        claim = folder.judge(out, plan, marks, replace)
        parts = dict(_checked(out, claim.parts, workers, tell)) if check else dict(claim.parts)
        todo = [shard for shard in plan.shards if shard not in parts]
        if todo:
            _check_prospects(plan, out, claim, todo, workers)
        folder.take(out, plan, claim)
        before = read_card(out)
        if todo:
            folder.withdraw(out)
            _Work(plan, out, marks, workers, max_reject, tell).make_all(todo, parts)
        parts = {shard: mend_index(out, shard, parts[shard]) for shard in plan.shards}
        card = make_card(plan, parts, out.resolve().name, folder.license_of(plan, claim))
        _check_rejects(plan, out, parts, max_reject, finished=bool(before) and not todo)
        if not todo and unsealed(before) == card and not any(card_faults(out, before)):
            return Prepared(out / CARD, before, 0, "finished already, unchanged")
        write_manifest(out, parts)
        write_rejects(out, _rejected(parts))
        card = sealed_card(card, out)
        write_json(out / CARD, card)
    return Prepared(out / CARD, card, len(todo), "" if todo else _changed(before, card))


def finished_shards(out: Path) -> int:
    """How many shards are done in a folder."""
    return sum(path.suffix == ".json" and path.name != PLAN for path in (out / PARTS).glob("[!.]*"))


def _changed(before: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """What is new in the card of a finished data set."""
    if before and before.get("license") != card["license"]:
        return f"finished already; licence changed to {card['license']!r}"
    return f"finished already; {CARD} and the lists beside it written anew"


def _checked(out: Path, parts: Parts, workers: int, tell: Tell) -> Iterator[tuple[Shard, Part]]:
    """Those shards whose bytes are as their records say."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        good = pool.map(lambda shard: stands(out, shard, parts[shard], check=True), parts)
        for done, ((shard, part), fits) in enumerate(zip(parts.items(), good, strict=True), start=1):
            if fits:
                yield shard, part
            tell(Step("checking", done, len(parts), 0, "shards"))


@attrs.frozen
class _Work:
    """Making the shards that are not done."""

    plan: Plan
    out: Path
    marks: Mapping[Shard, str]
    workers: int
    most: float
    tell: Tell

    def make_all(self, todo: list[Shard], parts: dict[Shard, Part]) -> None:
        """Make shards, and add their records to `parts`. What might be read another time is tried once more."""
        self._make(todo, parts)
        again = [shard for shard, part in parts.items() if part.passing]
        for shard in again:
            del parts[shard]
        self._make(again, parts)

    def _make(self, todo: list[Shard], parts: dict[Shard, Part]) -> None:
        progress = Progress(self.plan, parts, allowed(self.most, self.plan.count), self.tell)
        try:
            self._write(todo, parts, progress)
        except Hopeless:
            rejected = [*_rejected(parts), *progress.unwritten]
            write_rejects(self.out, rejected)
            _forget(self.out, parts)
            error = too_many(self.plan, self.out, [each for _, each in rejected], progress.seen, self.most)
            raise _again(error) if error else AssertionError("hopeless for no reason") from None

    def _write(self, todo: list[Shard], parts: dict[Shard, Part], progress: Progress) -> None:
        if not todo:
            return
        split_of = {split.name: split for split in self.plan.splits}
        originals = (original for shard in todo for original in split_of[shard.split].at(shard.first, shard.count))
        writer = Writer(self.out, tools(), next((part.side for part in parts.values() if part.side), None))
        with outcomes(Maker(self.plan.preparer, self.plan.settings), originals, self.workers) as made:
            for shard in todo:
                progress.begin(shard.split)
                pairs = zip(split_of[shard.split].at(shard.first, shard.count), made, strict=False)  # ends with the shard
                with _alive(shard.file):
                    parts[shard] = writer.write(shard, self.marks[shard], pairs, progress)
                progress.unwritten.clear()


@contextlib.contextmanager
def _alive(what: str) -> Iterator[None]:
    """Tell what the death of workers means."""
    try:
        yield
    except WorkerDied as error:
        raise DataError(
            f"{what}: worker processes died again and again, the last one at {error}: killed for want of memory, or by images that their "
            "decoder cannot bear. The same command goes on from here; fewer --workers need less memory"
        ) from error


def _check_prospects(plan: Plan, out: Path, claim: Claim, todo: list[Shard], workers: int) -> None:
    """Refuse to begin what will not fit, and to remove what there is nothing to replace with."""
    with _alive(todo[0].file):
        expected = forecast(plan, workers)
    needed = round(remaining(expected, todo) * _RESERVE)
    free = folder.free_space(out) + sum(path.stat().st_size for path in claim.doomed if path.exists())
    if needed > free:
        raise SetupError(
            f"{out}: about {needed:,} bytes are needed, but {free:,} are free on this disk: make room, or choose another folder"
        )
    tried, causes = total(expected)
    if claim.doomed and causes.total() == tried:
        raise DataError(f"none of {counted(tried)} that were tried can be used, so nothing was removed from {out}: {often(causes)}")


def _check_rejects(plan: Plan, out: Path, parts: Parts, most: float, finished: bool) -> None:
    """Refuse a data set that lacks too many of its images, or such as may be read another time.

    Shards that lack any are forgotten, unless they are part of one that is finished: so they are tried anew when the command is run again.
    """
    rejected = list(_rejected(parts))
    error: DataError | None = too_many(plan, out, [each for _, each in rejected], plan.count, most)
    if error is not None and finished:
        raise type(error)(f"{error} The data set that is finished stays as it is", getattr(error, "table", {}))
    passing = [each for _, each in rejected if each.passing]
    if error is None and not passing:
        return
    folder.withdraw(out)
    write_rejects(out, rejected)
    if error is not None:
        _forget(out, parts)
        raise _again(error)
    _forget(out, {shard: part for shard, part in parts.items() if part.passing})
    raise passing_by(plan, passing)


def _again(error: DataError) -> DataError:
    """An error with what helps."""
    told = f"{error} Mend the source and run the same command again, which tries them anew, or choose other settings"
    return TooManyRejects(told, error.table) if isinstance(error, TooManyRejects) else DataError(told)


def _forget(out: Path, parts: Parts) -> None:
    """Remove the records of shards that lack images."""
    folder.discard(record_of(out, shard) for shard, part in parts.items() if part.rejected)


def _rejected(parts: Parts) -> Iterator[tuple[str, Rejected]]:
    """What is in no shard, with its split."""
    return ((shard.split, each) for shard, part in parts.items() for each in part.rejected)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does, unless they are ignored. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
