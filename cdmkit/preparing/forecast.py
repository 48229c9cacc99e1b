"""What a data set will take, from a few of its images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import attrs

from cdmkit.preparing.images import Made, Maker
from cdmkit.preparing.plan import Plan, Shard, Split
from cdmkit.preparing.pool import outcomes
from cdmkit.preparing.write import escaped

_TRIED = 64
_PATIENCE = 10.0
"""Seconds after which no further image of a split is tried."""

_BLOCK = 512


@attrs.frozen(kw_only=True)
class Forecast:
    """What is expected of a split."""

    images: int
    shards: int
    bytes: int
    """Of all its shards."""
    tried: int
    """Images that this was learned from."""
    rejected: int
    """How many of them cannot be used."""
    causes: Mapping[str, int]
    """Why not."""

    def share(self, shards: int) -> float:
        """The bytes that some of the shards will take."""
        return self.bytes * shards / self.shards


def forecast(plan: Plan, workers: int = 0) -> dict[str, Forecast]:
    """What is expected of each split. Raises WorkerDied where workers die again and again."""
    return {split.name: _forecast(split, Maker(plan.preparer, plan.settings), min(workers, 2)) for split in plan.splits}


def _forecast(split: Split, maker: Maker, workers: int) -> Forecast:
    """Make the first images of the shuffled order, and throw them away."""
    end = time.monotonic() + _PATIENCE
    size = tried = 0
    causes = Counter[str]()
    first = list(split.at(0, _TRIED))
    with outcomes(maker, first, workers) as made:
        for original, outcome in zip(first, made, strict=True):
            tried += 1
            if isinstance(outcome, Made):
                size += _padded(len(outcome.data)) + (_padded(1) if original.label >= 0 else 0)
            else:
                causes[escaped(outcome.cause)] += 1
            if time.monotonic() > end:
                break
    images, shards = len(split.originals), len(split.shards)
    expected = round(images * size / tried) + shards * 12 * _BLOCK  # 2 end an archive, which is padded to a multiple of 20
    return Forecast(images=images, shards=shards, bytes=expected, tried=tried, rejected=causes.total(), causes=dict(causes.most_common()))


def _padded(size: int) -> int:
    """What a member takes in an archive: a header, and whole blocks."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def remaining(expected: Mapping[str, Forecast], todo: list[Shard]) -> int:
    """The bytes that the shards which are not done will take."""
    return round(sum(each.share(sum(shard.split == name for shard in todo)) for name, each in expected.items()))
