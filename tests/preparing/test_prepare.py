"""Whole data sets: what is in their files, and when there is none."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from cdmkit import preparing
from cdmkit.data.crop import Crop
from cdmkit.data.decode import decode
from cdmkit.data.find import find_shards
from cdmkit.data.tar import index_tar
from cdmkit.errors import DataError, SetupError, UsageError
from cdmkit.preparing import Prepared, Settings, Step
from tests.preparing.drawn import Drawn
from tests.preparing.test_interruption import contents

SETTINGS = Settings(resolution=16, per_shard=7, license="free")


def make(folder: Path, preparer: Drawn | None = None, settings: Settings = SETTINGS, workers: int = 0, **options: Any) -> Prepared:
    folder.mkdir(exist_ok=True)
    plan, _ = preparing.plan(preparer or Drawn(), folder, settings)
    return preparing.prepare(plan, folder / "out", workers=workers, **options)


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode()), delimiter="\t", quoting=csv.QUOTE_NONE))


class Stored(NamedTuple):
    """A sample as it lies in a shard."""

    key: str
    label: str
    data: bytes


def samples(out: Path, split: str) -> list[Stored]:
    """What any tool finds in the shards."""
    found = []
    for path in sorted(out.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member)) for member in tar]
            for (name, label), (image, data) in zip(members[::2], members[1::2], strict=True):
                assert label is not None
                assert data is not None
                key = name.removesuffix(".cls")
                assert image.startswith(f"{key}.")
                found.append(Stored(key, label.read().decode(), data.read()))
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set to look at, three of its images left out."""
    return make(tmp_path_factory.mktemp("made"), Drawn(broken=(3, 4, 11)), max_reject=0.2).path.parent


def test_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    """None, one or two: every file is the same, and holds neither times nor the folder's place."""
    made = []
    for workers in (0, 1, 2):
        folder = tmp_path / str(workers)
        make(folder, Drawn(count=150, broken=(3,)), workers=workers, max_reject=0.01)
        made.append(contents(folder / "out"))
    assert made[0] == made[1] == made[2]
    text = [gzip.decompress(data) if name.endswith(".gz") else data for name, data in made[0].items()]
    assert not any(str(tmp_path).encode() in data for data in text)


def test_samples(out: Path) -> None:
    """Keys are positions, with gaps where images are left out; each holds the label and picture of its line in the manifest."""
    source = {original.name: original for original in Drawn().look(out).splits["train"]}
    lines = {line["key"]: line for line in rows(gzip.decompress((out / "manifest.tsv.gz").read_bytes()))}
    stored = samples(out, "train")
    assert len(stored) == 17
    assert [each.key for each in stored] == sorted(key for key in lines if key.startswith("train"))
    assert {each.key for each in stored} < {f"train-{number:07d}" for number in range(20)}
    for each in stored:
        line = lines[each.key]
        original = source[line["source"].replace("\\x09", "\t")]
        assert int(each.label) == int(line["cls"]) == original.label
        assert (decode(each.data) == Crop.ADM(decode(Drawn().read(original)), 16)).all()
        assert each.key in index_tar(out / line["shard"]).keys


def test_members_are_plain(out: Path) -> None:
    """Regular files of nobody and no time, each sample's label before its picture."""
    with tarfile.open(out / "train-00000.tar") as tar:
        for number, member in enumerate(tar):
            assert member.name.endswith((".cls", ".png")[number % 2])
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, 0, "", "", 0o644)
            assert (member.type, member.pax_headers) == (tarfile.REGTYPE, {})


def test_card(out: Path) -> None:
    """All that one needs to know of the data, checked against the shards."""
    card = json.loads((out / "dataset.json").read_text())
    assert {
        key: card[key] for key in ("format", "name", "license", "classes", "resolution", "crop", "encoding", "exif", "min_side", "seed")
    } == {
        "format": 1,
        "name": "out",
        "license": "free",
        "classes": ["class 0", "class 1", "class 2"],
        "resolution": 16,
        "crop": "adm",
        "encoding": "png",
        "exif": "ignore",
        "min_side": 0,
        "seed": 0,
    }
    assert card["source"]["preparer"] == "drawn"
    assert card["source"]["broken"] == [3, 4, 11]
    assert set(card["tools"]) == {"cdmkit", "pillow", "simplejpeg"}
    assert {name: (split["samples"], split["rejected"]) for name, split in card["splits"].items()} == {"train": (17, 3), "val": (5, 0)}
    for name, split in card["splits"].items():
        labels: Counter[str] = Counter()
        for shard in split["shards"]:
            data = (out / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
            labels.update(shard["per_class"])
            assert sum(shard["per_class"].values()) == shard["samples"]
        assert labels == Counter(each.label for each in samples(out, name))
        assert len(find_shards(f"{out}/{name}-*.tar")) == len(split["shards"])


def test_small_images_are_counted(tmp_path: Path) -> None:
    """As those that had to be enlarged."""
    card = make(tmp_path, Drawn(side=12), Settings(resolution=16)).card
    sides = [min(decode(Drawn().read(original)).shape[:2]) for original in Drawn().look(tmp_path).splits["train"]]
    assert 0 < card["splits"]["train"]["enlarged"] == sum(side < 16 for side in sides) < 20


def test_fingerprint(tmp_path: Path) -> None:
    """That of the pictures and labels: not of the licence, the folder's name or the tools."""

    def fingerprint(name: str, preparer: Drawn | None = None, **settings: Any) -> str:
        made: str = make(tmp_path / name, preparer, Settings(**{"resolution": 8, **settings})).card["fingerprint"]
        return made

    assert fingerprint("a") == fingerprint("b", license="other", max_pixels=10_000)
    different = [
        fingerprint("c", seed=1),
        fingerprint("d", resolution=7),
        fingerprint("e", Drawn(classes=2)),
        fingerprint("f", crop=Crop.AREA),
    ]
    assert len({fingerprint("a"), *different}) == 5


def test_images_without_classes(tmp_path: Path) -> None:
    """Have no `.cls`, and nothing in the column of classes."""
    out = make(tmp_path, Drawn(classes=0)).path.parent
    assert (index_tar(out / "train-00000.tar").labels == -1).all()
    with tarfile.open(out / "train-00000.tar") as tar:
        assert all(name.endswith(".png") for name in tar.getnames())
    assert {line["cls"] for line in rows(gzip.decompress((out / "manifest.tsv.gz").read_bytes()))} == {""}


def test_kept_files(tmp_path: Path) -> None:
    """Without a resolution, files are stored as they are, and the first one's size is all others'."""
    made = make(tmp_path / "a", Drawn(square=True), Settings(per_shard=7))
    source = {Drawn(square=True).read(original) for original in Drawn(square=True).look(tmp_path).splits["train"]}
    assert {each.data for each in samples(made.path.parent, "train")} == source
    assert (made.card["resolution"], made.card["crop"], made.card["encoding"]) == (12, None, None)


def test_no_image_is_left(tmp_path: Path) -> None:
    """However many may be rejected, one must remain."""
    with pytest.raises(DataError, match="9 of 9 images are rejected"):
        make(tmp_path, Drawn(count=9, held=0, broken=tuple(range(9))), max_reject=1.0)


def test_kept_files_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are rejected, also when the first shard was made by an earlier run."""
    read, odd = Drawn.read, ""
    monkeypatch.setattr(Drawn, "read", lambda self, original: read(Drawn(side=9 if original.name == odd else 12, square=True), original))
    plan, _ = preparing.plan(Drawn(), tmp_path, Settings(per_shard=7))
    odd = next(plan.splits[0].at(8, 1)).name
    preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1)
    before = contents(tmp_path / "out")
    assert b"\tof another size: 9 x 9, but the first one is 12 x 12\n" in before["rejects.tsv"]
    odd = next(plan.splits[0].at(7, 1)).name  # the first of the second shard
    (tmp_path / "out" / "parts" / "train-00001.json").unlink()
    made = preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1)
    assert (made.made, made.card["splits"]["train"]["shards"][1]["samples"]) == (1, 6)


def test_rejects(out: Path) -> None:
    """Each is listed with its split, its name and the cause; the name holds neither tabs nor line ends."""
    lines = rows((out / "rejects.tsv").read_bytes())
    assert {line["source"] for line in lines} == {f"train/{number}\\x09ü.png" for number in (3, 4, 11)}
    assert {line["cause"] for line in lines} == {"not a JPEG, PNG, WebP or BMP image: it begins with b'no image'"}
    assert {line["split"] for line in lines} == {"train"}


def test_too_many_rejects(tmp_path: Path) -> None:
    """No card, but the list and all shards; allowing more then takes no second reading."""
    with pytest.raises(DataError, match=r"2 of 25 images are rejected, and --max-reject 0.04 allows 1: .*rejects.tsv lists them all; most"):
        make(tmp_path, Drawn(broken=(3, 4)), max_reject=0.04)
    assert len(rows((tmp_path / "out" / "rejects.tsv").read_bytes())) == 2
    assert not (tmp_path / "out" / "dataset.json").exists()
    made = make(tmp_path, Drawn(broken=(3, 4)), max_reject=0.08)
    assert (made.made, made.card["splits"]["train"]["rejected"]) == (0, 2)


def test_what_the_disk_failed_to_give_is_tried_again(tmp_path: Path) -> None:
    """By the next run, and no other image is."""
    with pytest.raises(DataError, match=r"cannot be read: Input/output error \(2\)"):
        make(tmp_path, Drawn(lost=(3, 4)))
    (tmp_path / "found").touch()
    made = make(tmp_path, Drawn(lost=(3, 4)))
    assert 1 <= made.made <= 2
    assert made.card["splits"]["train"]["rejected"] == 0
    assert made.card["splits"] == make(tmp_path / "other").card["splits"]


def test_too_little_memory_for_one_image(tmp_path: Path) -> None:
    """Is its fault, not the run's."""
    assert make(tmp_path, Drawn(huge=(5,)), max_reject=0.1).card["splits"]["train"]["rejected"] == 1


def test_shards_without_images_are_none(tmp_path: Path) -> None:
    """An archive of nothing would be taken for a damaged one."""
    made = make(tmp_path, Drawn(broken=tuple(range(0, 20, 2))), Settings(resolution=8, per_shard=1), max_reject=0.5)
    assert len(find_shards(f"{tmp_path}/out/train-*.tar")) == 10
    assert len(made.card["splits"]["train"]["shards"]) == 10
    assert make(tmp_path, Drawn(broken=tuple(range(0, 20, 2))), Settings(resolution=8, per_shard=1), max_reject=0.5).made == 0


def test_finished(tmp_path: Path) -> None:
    """The same again does nothing; a lost or cut shard is made again; another licence needs no more than a new card."""
    path = make(tmp_path).path
    before, touched = contents(path.parent), {each: each.stat().st_mtime_ns for each in path.parent.rglob("*") if each.name != ".lock"}
    assert make(tmp_path).made == 0
    assert touched == {each: each.stat().st_mtime_ns for each in touched}
    (path.parent / "train-00001.tar").unlink()
    (path.parent / "val-00000.tar").write_bytes(b"cut")
    assert make(tmp_path).made == 2
    assert contents(path.parent) == before
    made = make(tmp_path, settings=Settings(resolution=16, per_shard=7, license="other"))
    assert (made.made, json.loads(path.read_text())["license"]) == (0, "other")


def test_files_beside_the_shards_are_mended(tmp_path: Path) -> None:
    """What of a finished data set was damaged and can be told anew is written anew by the same command."""
    whole = contents(make(tmp_path).path.parent)
    for name in ("manifest.tsv.gz", "rejects.tsv", "dataset.json"):
        path = tmp_path / "out" / name
        path.write_bytes(path.read_bytes()[:-5])
        assert contents(make(tmp_path).path.parent) == whole


def test_other_settings_and_sources_are_refused(tmp_path: Path) -> None:
    """With what differs; --replace removes what was there, and only that."""
    out = make(tmp_path).path.parent
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds another data set: seed = 0 there, 1 here. .* --replace"):
        make(tmp_path, settings=Settings(resolution=16, per_shard=7, seed=1))
    with pytest.raises(UsageError, match=r"source.broken = \[\] there, \[1\] here"):
        make(tmp_path, Drawn(broken=(1,)))
    with pytest.raises(UsageError, match=r"source\.count = 20 there, 8 here"):
        make(tmp_path, Drawn(count=8))
    make(tmp_path, Drawn(count=8), replace=True)
    make(tmp_path / "new", Drawn(count=8))
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert contents(out) == contents(tmp_path / "new" / "out")


def test_a_changed_listing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same options: the order would be another one."""
    make(tmp_path)
    look = Drawn.look
    monkeypatch.setattr(Drawn, "look", lambda _self, path: look(Drawn(count=19), path))
    with pytest.raises(UsageError, match="the source lists other images, labels or classes than it did"):
        make(tmp_path)


def test_folders_with_other_things_are_refused(tmp_path: Path) -> None:
    """They are not ours to write into, not even with --replace."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-00000.tar").write_bytes(b"someone's")
    with pytest.raises(UsageError, match=r"holds train-00000\.tar, which this command did not make"):
        make(tmp_path, replace=True)
    assert (tmp_path / "out" / "train-00000.tar").read_bytes() == b"someone's"


def test_a_damaged_plan(tmp_path: Path) -> None:
    """Nothing of the folder is taken for granted any more."""
    out = make(tmp_path).path.parent
    (out / "parts" / "plan.json").write_text("{}")
    with pytest.raises(SetupError, match=r"plan.json cannot be read"):
        make(tmp_path)


def test_damaged_records_are_no_records(tmp_path: Path) -> None:
    """Their shards are made again."""
    out = make(tmp_path).path.parent
    before = contents(out)
    for path, text in zip(sorted((out / "parts").glob("train-*.json")), ("", "[]", '{"digest": 1}'), strict=False):
        path.write_text(text)
    assert make(tmp_path).made == 3
    assert contents(out) == before


def test_one_at_a_time(tmp_path: Path) -> None:
    """The second is told what is in its way."""
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(SetupError, match=r"out is in use by another process, which holds .*\.lock"):
        make(tmp_path)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SetupError, match="out cannot be used"):
        make(tmp_path)


def test_room_is_looked_for_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers are told. What is expected is about what it takes."""
    plan, _ = preparing.plan(Drawn(count=300), tmp_path, SETTINGS)
    expected = sum(each.bytes for each in preparing.forecast(plan).values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=expected))
    with pytest.raises(SetupError, match=f"about {round(expected * 1.1):,} bytes are needed, but {expected:,} are free"):
        preparing.prepare(plan, tmp_path / "out", workers=0)
    assert not list((tmp_path / "out").glob("*.tar"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2 * expected))
    out = preparing.prepare(plan, tmp_path / "out", workers=0).path.parent
    assert 0.8 < sum(path.stat().st_size for path in out.glob("*.tar")) / expected < 1.05
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=0))
    assert preparing.prepare(plan, out, workers=0).made == 0


def test_a_worker_that_dies(tmp_path: Path) -> None:
    """Killed by an image: said with the shard, and what is done stays."""
    with pytest.raises(DataError, match=r"train-\d{5}.tar: a worker process died"):
        make(tmp_path, Drawn(count=200, deadly=(150,)), workers=2)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_steps_are_told(tmp_path: Path) -> None:
    """From the beginning to the end of each split, or from where an earlier run ended."""
    steps: list[Step] = []
    make(tmp_path, Drawn(count=50, broken=(1,)), max_reject=0.1, tell=steps.append)
    assert [step for step in steps if step.done == step.total] == [Step("train", 50, 50, 1), Step("val", 5, 5, 0)]
    assert [step.done for step in steps if step.split == "train"] == [0, 16, 32, 48, 50]
    (tmp_path / "out" / "parts" / "train-00007.json").unlink()
    steps.clear()
    make(tmp_path, Drawn(count=50, broken=(1,)), max_reject=0.1, tell=steps.append)
    assert steps == [Step("train", 49, 50, 1), Step("train", 50, 50, 1)]


def test_nothing_to_prepare(tmp_path: Path) -> None:
    """A source that lists nothing is an error of the data."""
    with pytest.raises(DataError, match="no images"):
        make(tmp_path, Drawn(count=0, held=0))
