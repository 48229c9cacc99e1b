"""Whole data sets: what is in their files, and when there is none."""

from __future__ import annotations

import csv
import errno
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
from cdmkit.files import sealed, write_json
from cdmkit.kinds import Original
from cdmkit.preparing import Prepared, Settings, Step, TooManyRejects
from cdmkit.preparing.rejects import allowed
from tests.preparing.drawn import Drawn
from tests.preparing.test_interruption import contents

SETTINGS = Settings(resolution=16, per_shard=7, license="free")


def make(folder: Path, preparer: Drawn | None = None, settings: Settings = SETTINGS, workers: int = 0, **options: Any) -> Prepared:
    plan, _ = preparing.plan(preparer or Drawn(), source(folder), settings)
    return preparing.prepare(plan, folder / "out", workers=workers, **options)


def source(folder: Path) -> Path:
    """Where the images are from."""
    (folder / "source").mkdir(parents=True, exist_ok=True)
    return folder / "source"


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
    assert set(card["tools"]) == {"cdmkit", "pillow", "pillow-zlib", "simplejpeg", "zlib"}
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
    with pytest.raises(DataError, match=r"none of the 9 images can be used: .*rejects.tsv lists them all"):
        make(tmp_path, Drawn(count=9, held=0, broken=tuple(range(9))), max_reject=1.0)


def test_kept_files_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are rejected, also when the first shard was made by an earlier run."""
    read, odd = Drawn.read, ""
    monkeypatch.setattr(Drawn, "read", lambda self, original: read(Drawn(side=9 if original.name == odd else 12, square=True), original))
    plan, _ = preparing.plan(Drawn(), source(tmp_path), Settings(per_shard=7))
    odd = next(plan.splits[0].at(8, 1)).name
    steps: list[Step] = []
    preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1, tell=steps.append)
    assert [step.rejected for step in steps if step.done == step.total] == [1, 0]
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
    assert (1 <= made.made <= 2, made.card["splits"]["train"]["rejected"]) == (True, 2)


def test_mended_images_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same command, where there were too many of them; shards without any are not made again."""
    read = Drawn.read
    monkeypatch.setattr(Drawn, "read", lambda self, original: b"no image" if original.place[1] == 3 else read(self, original))
    with pytest.raises(DataError, match=r"2 of 25 images are rejected.* run the same command again"):
        make(tmp_path)
    monkeypatch.setattr(Drawn, "read", read)
    made = make(tmp_path)
    assert (made.made, made.card["splits"]["train"]["rejected"]) == (2, 0)


def test_the_limit_is_exact() -> None:
    """A share is a decimal number: 0.29 of 100 is 29, though floats make it less."""
    assert [allowed(most, 100) for most in (0.0, 0.01, 0.29, 0.57, 0.58, 1.0)] == [0, 1, 29, 57, 58, 100]


def test_a_stricter_limit_is_obeyed(tmp_path: Path) -> None:
    """Also by a data set that is finished, which stays."""
    before = contents(make(tmp_path, Drawn(broken=(3, 4)), max_reject=0.08).path.parent)
    with pytest.raises(DataError, match=r"2 of 25 images are rejected.*The data set that is finished stays as it is"):
        make(tmp_path, Drawn(broken=(3, 4)), max_reject=0.04)
    assert contents(tmp_path / "out") == before


def test_given_up_early(tmp_path: Path) -> None:
    """As soon as more are rejected than may be, but not before some were seen; what was found is listed."""
    preparer, steps = Drawn(count=1000, held=0, broken=tuple(range(0, 1000, 2))), list[Step]()
    with pytest.raises(
        TooManyRejects, match=r"of 32 images looked at so far are rejected, and --max-reject 0.01 allows 10 of 1,000: "
    ) as caught:
        make(tmp_path, preparer, max_reject=0.01, tell=steps.append)
    table = caught.value.table
    assert (table["images"], table["seen"], table["allowed"]) == (1000, 32, 10)
    assert len(rows((tmp_path / "out" / "rejects.tsv").read_bytes())) == table["rejected"] == sum(table["causes"].values()) > 10
    assert steps[-1].done <= 32


def test_advice_where_files_are_not_square(tmp_path: Path) -> None:
    """How they become so; and it can be followed, for nothing was made before."""
    with pytest.raises(DataError, match=r"not square.* --resolution S makes squares"):
        make(tmp_path, Drawn(count=60), settings=Settings())
    assert make(tmp_path, Drawn(count=60), settings=Settings(resolution=8)).made == 2
    make(tmp_path / "new", Drawn(count=60), settings=Settings(resolution=8))
    assert contents(tmp_path / "out") == contents(tmp_path / "new" / "out")


def test_what_the_disk_failed_to_give_is_tried_again(tmp_path: Path) -> None:
    """By the next run, and no other image is."""
    with pytest.raises(DataError, match=r"cannot be read: Input/output error \(2\)"):
        make(tmp_path, Drawn(lost=(3, 4)))
    (tmp_path / "source" / "found").touch()
    made = make(tmp_path, Drawn(lost=(3, 4)))
    assert 1 <= made.made <= 2
    assert made.card["splits"]["train"]["rejected"] == 0
    assert made.card["splits"] == make(tmp_path / "other").card["splits"]


def test_too_little_memory_for_one_image(tmp_path: Path) -> None:
    """Does not become one that is left out for good, however many may be."""
    with pytest.raises(DataError, match=r"1 image could not be read, nor when tried again: too little memory to decode it \(1\)"):
        make(tmp_path, Drawn(huge=(5,)), max_reject=0.1)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert len(list((tmp_path / "out" / "parts").glob("train-*.json"))) == 2


def test_what_passes_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same run."""
    read, failed = Drawn.read, []

    def fail_once(self: Drawn, original: Original) -> bytes:
        if original.place[1] == 3 and original not in failed:
            failed.append(original)
            raise OSError(errno.EIO, "Input/output error")
        return read(self, original)

    plan, _ = preparing.plan(Drawn(), source(tmp_path), SETTINGS)
    monkeypatch.setattr(preparing, "forecast", lambda plan, _workers: {})
    monkeypatch.setattr(Drawn, "read", fail_once)
    made = preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1)
    assert (len(failed), made.card["splits"]["train"]["rejected"]) == (2, 0)
    assert made.card["splits"] == make(tmp_path / "other").card["splits"]


def test_the_side_is_known_when_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first shard has no image to tell it."""
    read, bad = Drawn.read, dict[str, int]()

    def drawn(self: Drawn, original: Original) -> bytes:
        side = bad.get(original.name, 12)
        return read(Drawn(side=side, square=True), original) if side else b"no image"

    monkeypatch.setattr(Drawn, "read", drawn)
    plan, _ = preparing.plan(Drawn(), source(tmp_path), Settings(per_shard=1))
    order = [original.name for original in plan.splits[0].at(0, 3)]
    bad |= {order[0]: 0, order[2]: 9}
    preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "parts" / "train-00002.json").unlink()
    preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1)
    assert contents(tmp_path / "out") == before


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
    assert (made.made, made.note) == (0, "finished already; licence changed to 'other'")
    (path.parent / "val-00000.tar").unlink()
    for _ in range(2):  # and is kept where none is given, also when shards are made anew
        make(tmp_path, settings=Settings(resolution=16, per_shard=7))
        assert json.loads(path.read_text())["license"] == "other"


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


def test_over_the_source(tmp_path: Path) -> None:
    """Neither the source itself, nor what is in it or holds it: nothing is touched, whatever it is called."""
    here = source(tmp_path)
    (here / "inner").mkdir()
    (tmp_path / "link").symlink_to(here)
    plan, _ = preparing.plan(Drawn(), here, SETTINGS)
    for out in (here, here / "inner", here / "new" / "er", tmp_path / "link", tmp_path / "link" / "new", tmp_path, tmp_path.parent):
        with pytest.raises(UsageError, match="choose a folder apart from it"):
            preparing.prepare(plan, out, workers=0, replace=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inner", "link", "source"]


def test_replaced_from_the_beginning(tmp_path: Path) -> None:
    """Also by the same terms."""
    before = contents(make(tmp_path).path.parent)
    assert make(tmp_path, replace=True).made == 4
    assert contents(tmp_path / "out") == before


def test_nothing_is_removed_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing that is tried can be used, or the new one has no room, the old one stays; what is freed is room."""
    before = contents(make(tmp_path).path.parent)
    with pytest.raises(DataError, match=r"none of 25 images that were tried can be used, so nothing was removed from .*out: too small"):
        make(tmp_path, settings=Settings(resolution=16, min_side=100), replace=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=0))
    with pytest.raises(SetupError, match="bytes are needed"):
        make(tmp_path, settings=Settings(resolution=64), replace=True)
    assert contents(tmp_path / "out") == before
    make(tmp_path, settings=Settings(resolution=8), replace=True)


def test_other_pictures_of_the_same_names(tmp_path: Path) -> None:
    """Are another data set where one is finished; where none is, their shards are made anew."""
    path = make(tmp_path).path
    version = source(tmp_path) / "version"
    version.write_text("2")
    with pytest.raises(UsageError, match="other pictures of the same names: files of 4 of its 4 shards"):
        make(tmp_path)
    path.unlink()
    assert make(tmp_path).made == 4
    version.write_text("3")
    assert make(tmp_path, replace=True).made == 4


def test_a_card_without_its_records(tmp_path: Path) -> None:
    """Is not made over; --replace does."""
    before = contents(make(tmp_path).path.parent)
    shutil.rmtree(tmp_path / "out" / "parts")
    with pytest.raises(UsageError, match=r"finished data set without parts/plan.json.* --replace"):
        make(tmp_path)
    assert make(tmp_path, replace=True).made == 4
    assert contents(tmp_path / "out") == before


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    """Without so much as a lock."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="holds mine"):
        make(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_damaged_plan(tmp_path: Path) -> None:
    """Is written anew where the records tell that they are of this data set; else nothing of the folder is taken for granted."""
    out = make(tmp_path).path.parent
    before = contents(out)
    (out / "parts" / "plan.json").write_text("{}")
    assert make(tmp_path).made == 0
    assert contents(out) == before
    (out / "parts" / "plan.json").write_text("{}")
    with pytest.raises(SetupError, match=r"plan.json cannot be read"):
        make(tmp_path, settings=Settings(resolution=9))


def test_checked(tmp_path: Path) -> None:
    """A flipped bit of a shard is found when asked for, and the shard made anew."""
    out = make(tmp_path).path.parent
    before = contents(out)
    data = bytearray(before["train-00001.tar"])
    data[700] ^= 1
    (out / "train-00001.tar").write_bytes(data)
    assert make(tmp_path).made == 0
    steps: list[Step] = []
    assert make(tmp_path, check=True, tell=steps.append).made == 1
    assert contents(out) == before
    assert steps[:4] == [Step("checking", number, 4, 0, "shards") for number in range(1, 5)]


def test_an_index_is_made_anew_alone(tmp_path: Path) -> None:
    """Lost or damaged; its shard stays, and so does the card. One of another version is noted as it is."""
    out = make(tmp_path).path.parent
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in [*out.glob("*.tar"), out / "dataset.json"]}
    (out / "train-00000.idx.npz").unlink()
    (out / "train-00001.idx.npz").write_bytes(b"damaged")
    record = out / "parts" / "val-00000.json"
    told = {key: value for key, value in json.loads(record.read_text()).items() if key != "checksum"}
    write_json(record, sealed(told | {"index_sha256": "0" * 64}))
    assert make(tmp_path).made == 0
    assert contents(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("name", ["train-00001.json", "train-00001.tsv.gz"])
def test_a_changed_record_is_none(tmp_path: Path, name: str) -> None:
    """One byte is enough; its shard is made anew."""
    out = make(tmp_path).path.parent
    before = contents(out)
    data = bytearray((out / "parts" / name).read_bytes())
    data[data.index(b'"enlarged": ') + 12 if name.endswith("json") else -1] ^= 1
    (out / "parts" / name).write_bytes(data)
    assert make(tmp_path).made == 1
    assert contents(out) == before


def test_what_is_told_of_a_shard_goes_before_it(tmp_path: Path) -> None:
    """While a shard is made anew, neither its old record nor the card of the whole is there: a crash leaves nothing that is not true."""
    settings = Settings(resolution=16)
    path = make(tmp_path, settings=settings).path
    record, seen = path.parent / "parts" / "train-00000.json", []
    (path.parent / "train-00000.tar").write_bytes(b"cut")

    def look(step: Step) -> None:
        if step.done == 16:
            seen.append((path.exists(), record.exists()))

    assert make(tmp_path, settings=settings, tell=look).made == 1
    assert seen == [(False, False)]


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
    with pytest.raises(SetupError, match="out cannot be used: it, or what it would lie in, is a file"):
        make(tmp_path)
    with pytest.raises(SetupError, match=r"/proc/none/out cannot be made: .*: choose a folder that can be written to"):
        preparing.prepare(preparing.plan(Drawn(), source(tmp_path), SETTINGS)[0], Path("/proc/none/out"), workers=0)


def test_room_is_looked_for_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers are told. What is expected is about what it takes."""
    plan, _ = preparing.plan(Drawn(count=300), source(tmp_path), SETTINGS)
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
    """Killed by an image: that is rejected, all others are made."""
    card = make(tmp_path, Drawn(count=200, deadly=(50, 150)), workers=2, max_reject=0.01).card
    assert {line["cause"] for line in rows((tmp_path / "out" / "rejects.tsv").read_bytes())} == {"its decoder died"}
    assert (card["splits"]["train"]["samples"], card["splits"]["train"]["rejected"]) == (198, 2)
    other = make(tmp_path / "other", Drawn(count=200, broken=(50, 150)), max_reject=0.01).card
    assert card["fingerprint"] == other["fingerprint"]


def test_workers_that_die_again_and_again(tmp_path: Path) -> None:
    """Then it is not the images: said with the shard and one of them, and what is done stays."""
    with pytest.raises(DataError, match=r"train-\d{5}.tar: worker processes died again and again, the last one at train/\d+"):
        make(tmp_path, Drawn(count=30, deadly=tuple(range(30))), workers=1, max_reject=1)
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
