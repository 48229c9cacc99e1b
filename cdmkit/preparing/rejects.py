"""Images that are in no shard: how many there may be, and what is said where there are more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from cdmkit.errors import DataError
from cdmkit.preparing.card import REJECTS, Parts
from cdmkit.preparing.forecast import Forecast
from cdmkit.preparing.plan import Plan
from cdmkit.preparing.write import Rejected

_ENOUGH = 32
"""Images that must have been seen before the work is given up."""

_OFTEN = 16
"""Images between two steps that are told; the first is told before there are any."""

_SHOWN = 3
"""Causes that are told."""


class Step(NamedTuple):
    """How far a split is."""

    split: str
    done: int
    """Images that are dealt with, one way or the other."""
    total: int
    rejected: int
    of: str = "images"
    """What is counted."""


Tell = Callable[[Step], None]
"""Where steps are told."""


class TooManyRejects(DataError):
    """Too many images cannot be used, or some could not be read this time."""

    def __init__(self, message: str, table: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.table = table
        """Counts and causes, for JSON."""


class Hopeless(Exception):
    """More images are rejected than may be, before the end."""


def allowed(most: float, count: int) -> int:
    """How many of `count` images may be rejected, if their share is at most the decimal number `most`."""
    return int(Decimal(str(most)) * count)


class Progress:
    """Counts images as they are dealt with, tells of it, and raises Hopeless as soon as too many are rejected."""

    def __init__(self, plan: Plan, done: Parts, most: int, tell: Tell) -> None:
        self._totals = {split.name: len(split.originals) for split in plan.splits}
        self._done = Counter(dict.fromkeys(self._totals, 0))
        self._rejects = Counter[str]()
        for shard, part in done.items():
            self._done[shard.split] += shard.count
            self._rejects[shard.split] += len(part.rejected)
        self._most = most
        self._tell = tell
        self._split = ""
        self.unwritten: list[tuple[str, Rejected]] = []
        """Those that were rejected since the last whole shard."""

    @property
    def seen(self) -> int:
        """Images that are dealt with."""
        return self._done.total()

    def begin(self, split: str) -> None:
        """Say where a split stands, if that was not said."""
        if split != self._split:
            self._say(split)
        self._split = split

    def _say(self, split: str) -> None:
        self._tell(Step(split, self._done[split], self._totals[split], self._rejects[split]))

    def __call__(self, split: str, rejected: Rejected | None) -> None:
        """Count an image."""
        self._done[split] += 1
        if rejected is not None:
            self._rejects[split] += 1
            self.unwritten.append((split, rejected))
        if self._done[split] % _OFTEN == 0 or self._done[split] == self._totals[split]:
            self._say(split)
        if self.seen >= _ENOUGH and self._rejects.total() > self._most:
            raise Hopeless


def too_many(plan: Plan, out: Path, rejected: Sequence[Rejected], seen: int, most: float) -> TooManyRejects | None:
    """What to say of what is rejected among the `seen` images, None where that is not too much."""
    count, limit = len(rejected), allowed(most, plan.count)
    if count <= limit and count < plan.count:
        return None
    causes = Counter(each.cause for each in rejected)
    if count == plan.count:
        told = f"none of the {counted(count)} can be used"
    else:
        among, of_all = (f"{counted(seen)} looked at so far", f" of {plan.count:,}") if seen < plan.count else (counted(seen), "")
        told = f"{count:,} of {among} are rejected, and --max-reject {most:g} allows {limit:,}{of_all}"
    table = {"images": plan.count, "seen": seen, "rejected": count, "allowed": limit, "causes": dict(causes.most_common())}
    return TooManyRejects(f"{told}: {out / REJECTS} lists them all; most often: {often(causes)}.{advice(plan, causes)}", table)


def passing_by(plan: Plan, passing: Sequence[Rejected]) -> TooManyRejects:
    """What to say of images that may be read another time."""
    causes = Counter(each.cause for each in passing)
    table = {"images": plan.count, "seen": plan.count, "rejected": len(passing), "allowed": 0, "causes": dict(causes.most_common())}
    told = f"{counted(len(passing))} could not be read, nor when tried again: {often(causes)}. The same command tries them anew; what can "
    return TooManyRejects(f"{told}never be read must be removed from the source", table)


def counted(count: int, what: str = "image") -> str:
    """1 image, 2,000 images."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def often(causes: Counter[str]) -> str:
    """The most frequent causes."""
    return "; ".join(f"{cause} ({times:,})" for cause, times in causes.most_common(_SHOWN))


def total(expected: Mapping[str, Forecast]) -> tuple[int, Counter[str]]:
    """How many images were tried for a forecast, and why how many of them cannot be used."""
    causes = Counter[str]()
    for each in expected.values():
        causes.update(each.causes)
    return sum(each.tried for each in expected.values()), causes


def advice(plan: Plan, causes: Counter[str]) -> str:
    """What may help against the causes, if anything simple does."""
    odd = sum(times for cause, times in causes.items() if cause.startswith(("not square", "of another size")))
    if plan.settings.resolution is None and odd * 2 > causes.total():
        return " Without --resolution files are kept as they are: --resolution S makes squares of S x S pixels of them."
    return ""
