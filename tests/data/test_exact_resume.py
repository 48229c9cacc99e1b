"""The order of training is exact: across epochs, ranks, workers and batch sizes, from any position."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdmkit.data.writer import Sample, write_shards
from tests.data.ranks import Seen, read

COUNT, BATCH, STEPS = 50, 8, 20  # 160 positions: three epochs and a part, none of which ends with a batch


IMAGES = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of unequal length."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards((Sample(image, n) for n, image in enumerate(IMAGES)), folder, per_shard=7)
    return f"{folder}/train-*.tar"


def together(pattern: str, world: int, cases: list[list[int]], folder: Path) -> list[Seen]:
    """What `world` processes see, joined by the collectives of gloo."""
    out = folder / "seen.json"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.data.ranks",
                pattern,
                str(rank),
                str(world),
                str(folder / "rendezvous"),
                str(out),
                json.dumps(cases),
            ],
            cwd=Path(__file__).parents[2],
        )
        for rank in range(world)
    ]
    try:
        assert [process.wait(60) for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
            process.wait()
    told = json.loads(out.read_text())
    assert told["lengths"] == [BATCH // world], "equal batches on every rank"
    return [[[(position, label, digest) for position, label, digest in step] for step in case] for case in told["cases"]]


def joined(seen: Seen) -> list[tuple[int, int, str]]:
    """All images, whatever the step."""
    return list(itertools.chain.from_iterable(seen))


@pytest.mark.parametrize("mix", [0, 3])
def test_every_epoch_holds_every_image_once(pattern: str, mix: int) -> None:
    """Through the whole reader, each with its own label."""
    images = joined(read(pattern, [2, mix, BATCH, 0, STEPS]))
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in IMAGES]
    for epoch in range(3):
        labels = [label for position, label, digest in images if position // COUNT == epoch and digests[label] == digest]
        assert sorted(labels) == list(range(COUNT))


@pytest.mark.parametrize("mix", [0, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stop", [1, 6, 13])
def test_goes_on_as_if_uninterrupted(pattern: str, workers: int, mix: int, stop: int) -> None:
    """Stopped anywhere, across the end of an epoch (6) and long after (13), and gone on with any number of workers."""
    whole = read(pattern, [2, mix, BATCH, 0, STEPS])
    assert read(pattern, [workers, mix, BATCH, stop * BATCH, STEPS - stop]) == whole[stop:]


@pytest.mark.parametrize("batch", [1, 4, 16, 20])
def test_batch_size_cuts_the_same_order(pattern: str, batch: int) -> None:
    """Another batch size from the same position goes on with the same images."""
    whole = joined(read(pattern, [2, 0, BATCH, 0, STEPS]))
    assert joined(read(pattern, [1, 0, batch, 80, 80 // batch])) == whole[80:160]


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_sees_the_same_batches(pattern: str, world: int, tmp_path: Path) -> None:
    """Real processes, whose ranks together see, step by step, what one process sees alone; also when the run was begun by another number of
    them, with any number of workers, and ends within another epoch.
    """
    cases = [[workers, mix, BATCH, stop * BATCH, STEPS - stop] for workers in (0, 1, 2) for mix in (0, 3) for stop in (0, 6, 13)]
    for case, seen in zip(cases, together(pattern, world, cases, tmp_path), strict=True):
        assert seen == read(pattern, [2, *case[1:]]), case
