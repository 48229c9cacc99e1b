"""How fast images come: `python benchmarks/loader.py [--images FOLDER] [--workers N] [--seconds S] [--rounds N]`.

Beside cdmkit's reader, in turns on the same files: webdataset's own pipeline (shuffle, decode, batched, in a DataLoader), and single
files read with Pillow as torchvision's ImageFolder does, in a DataLoader. All make shuffled batches of 64 uint8 images with as many
workers, threads in cdmkit and processes elsewhere. Then what else must be quick: an index, a place in the order of ImageNet, and memory.

The pictures are parts of those in FOLDER; without one they are drawn, which compress otherwise.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from cdmkit.builtin.webdataset import WebDataset
from cdmkit.data.crop import Crop
from cdmkit.data.decode import decode
from cdmkit.data.encode import Encoding
from cdmkit.data.order import Order
from cdmkit.data.tar import index_tar

BATCH = 64
SHARDS = 8
CASES = ((32, Encoding.PNG, 20_000), (64, Encoding.PNG, 8_000), (64, Encoding.JPEG, 8_000), (256, Encoding.JPEG, 1_000))

Batches = Iterator[Any]


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def pictures(folder: Path | None) -> list[Image.Image]:
    """What images are cut from."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:150]
        return [image for path in files if min((image := Image.open(path).convert("RGB")).size) >= 256]
    random = np.random.default_rng(0)
    blurred = [
        Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).resize((400, 400), Image.Resampling.BICUBIC) for _ in range(40)
    ]
    grain = random.normal(0, 6, (400, 400, 3))
    return [Image.fromarray((np.asarray(each) + grain).clip(0, 255).astype(np.uint8)) for each in blurred]


def store(folder: Path, sources: list[Image.Image], size: int, encoding: Encoding, count: int) -> None:
    """Write parts of pictures as shards, and as a folder for each class."""
    random = np.random.default_rng(size)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard, count, SHARDS):
                source = sources[number % len(sources)]
                left, top = (int(random.integers(0, side - 223)) for side in source.size)
                part = np.asarray(source.crop((left, top, left + 224, top + 224)))
                data, label = encoding(Crop.ADM(part, size)), number % 10
                for extension, content in (("cls", b"%d" % label), (encoding.extension, data)):
                    info = tarfile.TarInfo(f"train-{number:07d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                place = folder / "files" / str(label) / f"{number}.{encoding.extension}"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)


def ours(folder: Path, encoding: Encoding, workers: int) -> Batches:
    """The reader of cdmkit."""
    return WebDataset(shards=f"{folder}/train-*.tar", workers=workers).open(BATCH, 0, 1, 0, 0)


def theirs(folder: Path, encoding: Encoding, workers: int) -> Batches:
    """The pipeline of webdataset, as its documentation has it."""
    urls = sorted(map(str, folder.glob("*.tar")))
    pipeline = webdataset.WebDataset(urls, shardshuffle=SHARDS, empty_check=False).repeat().shuffle(1000)
    pipeline = pipeline.decode("torchrgb8").to_tuple(encoding.extension, "cls").batched(BATCH)
    return iter(DataLoader(pipeline, batch_size=None, num_workers=workers))


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Single files, read as torchvision's ImageFolder does."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted((folder / "files").rglob("*.*"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.files[index]
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), int(path.parent.name)


def files(folder: Path, encoding: Encoding, workers: int) -> Batches:
    """A DataLoader over single files."""
    found = Files(folder)
    return iter(DataLoader(found, BATCH, sampler=RandomSampler(found, replacement=True, num_samples=10**8), num_workers=workers))


READERS: dict[str, Callable[[Path, Encoding, int], Batches]] = {"cdmkit": ours, "webdataset": theirs, "files": files}


def rate(batches: Batches, seconds: float) -> float:
    """Images per second, once the workers are under way."""
    for _ in range(8):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        _, labels = next(batches)[:2]
        count += len(labels)
    return count / (time.perf_counter() - began)


def measured(folder: Path, encoding: Encoding, workers: int, seconds: float) -> dict[str, float]:
    """One round of all readers."""
    found = {}
    for name, opened in READERS.items():
        batches = opened(folder, encoding, workers)
        found[name] = rate(batches, seconds)
        if hasattr(batches, "close"):
            batches.close()
        del batches  # ends a DataLoader's processes
    return found


def indexing(folder: Path) -> None:
    """An index beside reading everything with tarfile and decoding it, per sample."""
    path = folder / "train-00000.tar"

    def seconds(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        return min(taken)

    def read() -> None:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if not member.name.endswith(".cls"):
                    decode(data)

    count = len(index_tar(path).keys)
    quick, slow = seconds(lambda: index_tar(path), 5) / count, seconds(read, 2) / count
    say(f"  index {quick * 1e6:.1f} us a sample, tarfile and decode {slow * 1e6:.0f}: {slow / quick:.1f} times as long")


def memory() -> float:
    """Megabytes that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def epochs(folder: Path, workers: int, count: int) -> None:
    """Memory at the end of each of three epochs."""
    batches, seen = ours(folder, Encoding.PNG, workers), []
    for _ in range(3):
        for _ in range(count // BATCH):
            next(batches)
        seen.append(memory())
    say(f"memory after each of three epochs: {', '.join(f'{each:.0f} MB' for each in seen)}")


def positioning() -> None:
    """The first batch of epoch 500 of as many images as ImageNet has."""
    count, taken = 1_281_167, []
    for _ in range(3):
        began = time.perf_counter()
        Order(count, 0)(torch.arange(500 * count, 500 * count + 2048))
        taken.append(time.perf_counter() - began)
    say(f"a position in epoch 500 of {count:,} images: {min(taken):.3f} s")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sources = pictures(given.images)
    say(f"{given.workers} workers, {os.cpu_count()} cores; images/s, medians of {given.rounds} rounds, and cdmkit's as a multiple")
    with tempfile.TemporaryDirectory() as place:
        for size, encoding, count in CASES:
            folder = Path(place) / f"{size}-{encoding.value}"
            folder.mkdir()
            store(folder, sources, size, encoding, count)
            rounds = [measured(folder, encoding, given.workers, given.seconds) for _ in range(given.rounds)]
            speed = {name: statistics.median(each[name] for each in rounds) for name in READERS}
            told = (f"{name} {value:,.0f} ({speed['cdmkit'] / value:.2f})" for name, value in speed.items())
            say(f"{size} px {encoding.value}: {', '.join(told)}")
            indexing(folder)
        epochs(Path(place) / "32-png", given.workers, CASES[0][2])
    positioning()


if __name__ == "__main__":
    main()
