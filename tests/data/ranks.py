"""A process of several that read a data set together: python -m tests.data.ranks PATTERN RANK WORLD RENDEZVOUS OUT CASES

Every case is [workers, mix, batch, position, steps]. Of each, the first process writes what all saw: for every step, the positions, labels
and a digest of the pixels, sorted by position.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from cdmkit.builtin.webdataset import WebDataset
from cdmkit.kinds import Batch

Seen = list[list[tuple[int, int, str]]]
"""For each step, (position, label, digest of the pixels) of every image."""


def read(pattern: str, case: list[int], rank: int = 0, world: int = 1) -> Seen:
    """What one rank sees."""
    workers, mix, batch, position, steps = case
    source = WebDataset(shards=pattern, workers=workers, mix=mix)
    with source.open(batch // world, rank, world, 0, position) as batches:
        return [_seen(each) for each in itertools.islice(batches, steps)]


def _seen(batch: Batch) -> list[tuple[int, int, str]]:
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
    return list(zip(batch.positions.tolist(), batch.labels.tolist(), digests, strict=True))


def main(pattern: str, rank: int, world: int, rendezvous: str, out: str, cases: list[list[int]]) -> None:
    """Take part."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=60), world, rank)
    seen = [read(pattern, case, rank, world) for case in cases]
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, seen)
    distributed.destroy_process_group()
    if rank == 0:
        lengths = {len(step) for each in gathered for case in each for step in case}
        joined = [[sorted(itertools.chain(*ranks)) for ranks in zip(*case, strict=True)] for case in zip(*gathered, strict=True)]
        Path(out).write_text(json.dumps({"lengths": sorted(lengths), "cases": joined}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], json.loads(sys.argv[6]))
