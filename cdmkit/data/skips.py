"""What of a data set cannot be used: an error, or left out and told of, as the policy says."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from enum import Enum

import attrs

from cdmkit.errors import DataError
from cdmkit.kinds import Skip

_MEND = 'Mend it, or have such samples left out: damaged = "skip" of the source'


class Damaged(Enum):
    """What becomes of samples that cannot be used."""

    RAISE = "raise"
    """Training ends with an error."""
    SKIP = "skip"
    """The next good sample stands in for each."""


@attrs.frozen
class Tolerance:
    """The policy, and the share of all samples beyond which even a patient one ends with an error."""

    damaged: Damaged = Damaged.RAISE
    most: float = 0.001


class Skips:
    """The samples that are left out, counted. Safe to use from several threads.

    `count`: all samples, good or bad, a guess where nothing tells how many a damaged shard had.
    """

    def __init__(self, tolerance: Tolerance, count: int) -> None:
        self._tolerance = tolerance
        self._count = count
        self._first = ""
        self._untold: list[Skip] = []
        self._lock = threading.Lock()
        self.samples = 0
        """How many are left out."""

    def refuse(self, skips: Sequence[Skip]) -> None:
        """Raise DataError where nothing may be left out, and there is something."""
        if skips and self._tolerance.damaged is Damaged.RAISE:
            raise DataError(f"{skips[0].message}{_others(skips[1:])}. {_MEND}")

    def add(self, skips: Sequence[Skip], samples: int) -> None:
        """Leave out `samples` more, for the reasons in `skips`. Raises DataError where those are too many."""
        if not skips:
            return
        with self._lock:
            self.samples += samples
            self._first = self._first or skips[0].message
            self._untold += skips
            if self.samples > self._tolerance.most * self._count:
                raise DataError(
                    f"{self.samples} of {self._count} samples cannot be used, more than max_skipped = {self._tolerance.most} of the source "
                    f"allows. The first: {self._first}. `cdmkit data verify` lists them: mend or remove them, or raise max_skipped"
                )

    def take(self) -> list[Skip]:
        """Those that were left out since this was last called."""
        with self._lock:
            taken, self._untold = self._untold, []
        return taken


def _others(skips: Sequence[Skip]) -> str:
    """How many more there are, by cause."""
    counts: dict[str, int] = {}
    for skip in skips:
        counts[skip.cause] = counts.get(skip.cause, 0) + 1
    told = ", ".join(f"{count} x {cause}" for cause, count in counts.items())
    return f" (and more: {told})" if told else ""
