"""Shards on a server as a source: fetched when they are needed, kept within a limit, and the same stream as from a disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from cdmkit.builtin.webdataset import WebDataset
from cdmkit.data import find
from cdmkit.data.remote import Patience, read_text
from cdmkit.data.resize import Resize
from cdmkit.data.skips import Damaged
from cdmkit.data.writer import Sample, write_shards
from cdmkit.errors import DataError
from cdmkit.kinds import Batch
from cdmkit.previewing import Previewer
from tests import tiny
from tests.training.components import make_stage

COUNT, PER_SHARD = 60, 6


class Served:
    """A folder on a server, and how often each file of it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.silent_after = 1000
        """Shards after which it says nothing more."""
        self.waiting, self.go_on = threading.Event(), threading.Event()
        served = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, directory=str(folder), **named)

            def do_GET(self) -> None:
                served.asked[self.path.rpartition("/")[2].partition("?")[0]] += 1
                if served.shards > served.silent_after:
                    served.waiting.set()
                    served.go_on.wait(60)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def shards(self) -> int:
        """How many shards were asked for."""
        return sum(count for name, count in self.asked.items() if name.endswith(".tar"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Ten shards of six images with a list that tells all of them."""
    folder = tmp_path / "served"
    images = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    paths = write_shards((Sample(image, n % 5) for n, image in enumerate(images)), folder, per_shard=PER_SHARD)
    listed = [
        {"file": p.name, "bytes": p.stat().st_size, "samples": PER_SHARD, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in paths
    ]
    (folder / "dataset.json").write_text(json.dumps({"classes": list("abcde"), "crop": "adm", "splits": {"train": {"shards": listed}}}))
    server = Served(folder)
    yield server
    server.server.shutdown()
    server.server.server_close()


def read(source: WebDataset, steps: int, position: int = 0) -> list[Batch]:
    with source.open(6, 0, 1, 0, position) as batches:
        return list(itertools.islice(batches, steps))


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


def wait_until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


PATTERN = "train-{00000..00009}.tar"


@pytest.mark.parametrize("mix", [0, 3])
@pytest.mark.parametrize("name", [PATTERN, "dataset.json"])
def test_the_same_stream_as_from_a_disk(served: Served, mix: int, name: str) -> None:
    """Batch for batch, over two epochs, and known by the same fingerprint; every shard is fetched once."""
    near, far = (WebDataset(shards=f"{place}/{name}", mix=mix) for place in (served.folder, served.url))
    assert near.card().fingerprint == far.card().fingerprint
    assert (far.card().count, far.card().classes, far.card().crop) == (COUNT, 5, "adm")
    assert equal(read(near, 20), read(far, 20))
    assert equal(read(near, 5, 42), read(far, 5, 42))
    assert max(served.asked[path.name] for path in served.folder.glob("*.tar")) == 1


def test_training_starts_before_all_is_there(served: Served) -> None:
    """A card costs the first shard; the first batches those of their blocks and of the next ones."""
    source = WebDataset(shards=f"{served.url}/{PATTERN}", mix=2)
    source.card()
    assert served.shards == 1
    read(source, 1)
    wait_until(lambda: served.shards >= 4)
    assert served.shards < 10


def test_the_cache_stays_within_its_limit(served: Served, cache: Path) -> None:
    """Shards that are done with go, and are fetched again in the next epoch; what is read stays the same."""
    size = (served.folder / "train-00000.tar").stat().st_size
    near = WebDataset(shards=f"{served.folder}/{PATTERN}", mix=1)
    far = WebDataset(shards=f"{served.url}/{PATTERN}", mix=1, cache=3.5 * size / 1e9, workers=1)
    with far.open(1, 0, 1, 0, 0) as batches:
        seen = []
        for position in range(2 * COUNT):
            seen.append(next(batches))
            if position % PER_SHARD == PER_SHARD - 1:
                wait_until(lambda: not any(thread.name == "cdmkit-fetch" for thread in threading.enumerate()))
                assert len(list(cache.glob("*.tar"))) <= 6
    with near.open(1, 0, 1, 0, 0) as batches:
        assert equal(seen, list(itertools.islice(batches, 2 * COUNT)))
    assert served.shards > 12


def test_without_a_list_all_is_fetched_first(served: Served) -> None:
    """Nobody tells how many images there are, so they are counted."""
    (served.folder / "dataset.json").unlink()
    card = WebDataset(shards=f"{served.url}/{PATTERN}").card()
    assert (card.count, card.classes, served.shards) == (COUNT, 5, 10)


def test_a_list_without_classes(served: Served) -> None:
    """One of wids tells counts alone: the first shard tells whether there are labels."""
    shards = [{"url": path.name, "nsamples": PER_SHARD} for path in sorted(served.folder.glob("*.tar"))]
    (served.folder / "wids.json").write_text(json.dumps({"wids_version": 1, "shardlist": shards}))
    card = WebDataset(shards=f"{served.url}/wids.json").card()
    assert (card.count, card.classes, served.shards) == (COUNT, 5, 1)


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ("train-{00000..00010}.tar", "train-00010.tar"),
        ("train-*.tar", "servers cannot be asked for wildcards"),
        ("none.json", "there is no "),
    ],
)
def test_what_is_not_there_is_told_at_the_start(served: Served, shards: str, words: str) -> None:
    """By the card, before anything is trained."""
    with pytest.raises(DataError) as told:
        WebDataset(shards=f"{served.url}/{shards}?token=secret", workers=1).card()
    assert words in str(told.value)
    assert "secret" not in str(told.value)


def test_bytes_that_are_not_as_listed(served: Served) -> None:
    """A shard with one flipped bit is refused by its SHA-256, when it is needed."""
    path = served.folder / "train-00003.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00003\.tar"):
        read(WebDataset(shards=f"{served.url}/{PATTERN}"), 10)


def test_fewer_samples_than_listed(served: Served) -> None:
    """A list that tells more samples than a shard has is of other data."""
    card = json.loads((served.folder / "dataset.json").read_text())
    card["splits"]["train"]["shards"][2]["samples"] = 7
    (served.folder / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="has 6 samples, but the list beside it says 7"):
        read(WebDataset(shards=f"{served.url}/{PATTERN}"), 11)


def test_what_is_in_the_cache_can_be_read_without_the_server(served: Served) -> None:
    """The list, too; what is not in the cache is an error."""
    source = WebDataset(shards=f"{served.url}/{PATTERN}")
    expected = read(source, 10)
    served.server.shutdown()
    served.server.server_close()
    find._remote.cache_clear()  # as in another process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdmkit.data.find.read_text", lambda url: read_text(url, patience=Patience(attempts=1, wait=0.0, timeout=1.0)))
        assert equal(read(source, 10), expected)
        with pytest.raises(DataError, match="cannot be downloaded"):
            WebDataset(shards=f"{served.url}/other/{PATTERN}").card()


def without_sums(served: Served) -> None:
    """Have the list tell counts alone, so that damage is found by reading."""
    card = json.loads((served.folder / "dataset.json").read_text())
    for shard in card["splits"]["train"]["shards"]:
        del shard["sha256"]
    (served.folder / "dataset.json").write_text(json.dumps(card))


def test_what_is_wrong_with_a_fetched_shard_is_told_for_what_it_is(served: Served) -> None:
    """As of a local one: with its key and cause, once, or as an error when the shard is at hand."""
    without_sums(served)
    path = served.folder / "train-00003.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"train-0000019.cls") + 512] = ord("x")
    path.write_bytes(data)
    source = WebDataset(shards=f"{served.url}/{PATTERN}", damaged=Damaged.SKIP, max_skipped=0.1)
    with source.open(10, 0, 1, 0, 0) as batches:
        labels = torch.cat([next(batches).labels for _ in range(12)])
        (skip,) = batches.skips()
        assert batches.skipped == 1
    assert (skip.key, skip.cause) == ("train-0000019", "bad label")
    assert len(labels) == 120
    with pytest.raises(DataError, match=r"train-00003\.tar.*'train-0000019' has the label 'x'"):
        read(WebDataset(shards=f"{served.url}/{PATTERN}"), 20)


def test_two_streams_may_let_go_of_each_others_shards(served: Served) -> None:
    """What one lets go of the other fetches again when it needs it."""
    size = (served.folder / "train-00000.tar").stat().st_size
    sources = [WebDataset(shards=f"{served.url}/{PATTERN}", mix=1, cache=n * size / 1e9, workers=1) for n in (1.5, 2.5)]
    expected = read(WebDataset(shards=f"{served.folder}/{PATTERN}", mix=1), 20)
    with sources[0].open(6, 0, 1, 0, 0) as one, sources[1].open(6, 0, 1, 0, 0) as two:
        seen = [(next(one), next(two)) for _ in range(20)]
    assert all(equal(list(stream), expected) for stream in zip(*seen, strict=True))


def test_a_lost_file_is_fetched_again(served: Served, cache: Path) -> None:
    """Whoever removed it."""
    source = WebDataset(shards=f"{served.url}/{PATTERN}")
    expected = read(source, 10)
    for path in cache.glob("*.tar"):
        path.unlink()
    assert equal(read(source, 10), expected)
    assert source.card().count == COUNT


def test_a_shard_that_does_not_come_is_asked_for_once(served: Served) -> None:
    """All who wait for it are told together, not one after the other."""
    (served.folder / "train-00004.tar").unlink()
    source = WebDataset(shards=f"{served.url}/{PATTERN}", workers=4)
    with source.open(30, 0, 1, 0, 0) as batches:
        for _ in range(2):
            with pytest.raises(DataError, match=r"train-00004\.tar"):
                next(batches)
    assert served.asked["train-00004.tar"] == 1


def test_a_silent_server_does_not_hold_a_run(served: Served, tmp_path: Path) -> None:
    """SIGTERM while a shard does not come: the run is saved and ends with 75, at once."""
    recipe = tiny.RECIPE.replace(
        '{ type = "shapes", resolution = 8, count = 32 }', f'{{ type = "webdataset", shards = "{served.url}/{PATTERN}", mix = 1 }}'
    ).replace("steps = 4\n", "steps = 400\n")
    served.silent_after = 4
    with tiny.start("run", tiny.write(tmp_path, recipe), "--run", tmp_path / "run") as process:
        try:
            wait_until(lambda: served.waiting.is_set())
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
            assert (code, time.monotonic() - began < 15) == (75, True)
        finally:
            served.go_on.set()
            process.kill()
    assert list((tmp_path / "run" / "stages" / "base" / "ckpt").iterdir())


def test_a_preview_is_left_while_its_images_do_not_come(served: Served, tmp_path: Path) -> None:
    """What its `tick` raises ends the wait."""

    class Asked(Exception):
        pass

    def tick(_stage: str) -> None:
        raise Asked

    served.silent_after = 0
    source = WebDataset(shards=f"{served.url}/{PATTERN}")
    stage = make_stage()
    network = stage.backbone.build(stage.network_spec(5))
    try:
        with pytest.raises(Asked):
            Previewer(lineage=(stage,), stages=tmp_path, source=source, downsample=Resize.AREA, classes=5, seed=0)(network, None, tick)
    finally:
        served.go_on.set()


def test_a_server_is_asked_for_its_list_once(served: Served) -> None:
    """However often the data are opened."""
    source = WebDataset(shards=f"{served.url}/{PATTERN}")
    for _ in range(3):
        read(source, 1)
    assert served.asked["dataset.json"] == 1
