"""What an index of a tar finds, and what it refuses."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from cdmkit.data.headers import Window, members
from cdmkit.data.tar import TarIndex, index_tar
from cdmkit.errors import DataError

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "bad-inputs" / "tars"
GOOD = {"a.png": b"picture a", "a.cls": b"3", "b.jpg": b"picture b" * 100, "b.cls": b"12"}


def write(path: Path, members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of these members."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def assert_told(path: Path, pattern: str) -> None:
    """The index of a shard says of one thing in it that it cannot be used."""
    (skip,) = index_tar(path).skips
    assert re.search(pattern, skip.message), skip.message


def stored(index: TarIndex) -> dict[str, tuple[bytes, int]]:
    """Image bytes and label by key, read where the index says."""
    data = index.path.read_bytes()
    rows = zip(index.keys, index.offsets.tolist(), index.sizes.tolist(), index.labels.tolist(), strict=True)
    return {key: (data[offset : offset + size], label) for key, offset, size, label in rows}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_finds_samples(tmp_path: Path, format: int) -> None:
    """Each image's bytes and label are found in every tar format."""
    index = index_tar(write(tmp_path / "x.tar", GOOD, format))
    assert stored(index) == {"a": (b"picture a", 3), "b": (b"picture b" * 100, 12)}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, format: int) -> None:
    """Names beyond 100 bytes and outside ASCII are whole."""
    key = "é" * 60 + "/" + "x" * 200
    index = index_tar(write(tmp_path / "x.tar", {f"{key}.png": b"1", f"{key}.cls": b"0", "short.png": b"2", "short.cls": b"1"}, format))
    assert index.keys == [key, "short"]


def pax(folder: Path, records: bytes) -> Path:
    """A tar whose one image has this PAX extended header."""
    path, header = folder / "pax.tar", tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(header, io.BytesIO(records))
        tar.addfile(tarfile.TarInfo("a.png"))
    return path


def test_pax_records_are_read_one_by_one(tmp_path: Path) -> None:
    """Values may hold blanks, line ends and what looks like another record."""
    records = b"22 comment=9 path=z.g\n" + b"12 x=a\nb=c\n\n" + b"14 path=b.png\n"
    assert index_tar(pax(tmp_path, records)).keys == ["b"]


@pytest.mark.parametrize("records", [b"x", b"5", b"-3 a=b\n", b"0 a=b\n", b"2 a=b\n", b"99 a=b\n", b"one a=b\n"])
def test_damaged_pax_headers(tmp_path: Path, records: bytes) -> None:
    """Lengths that are none, or that lead nowhere."""
    assert_told(pax(tmp_path, records), "unreadable extended header")


def test_pax_headers_are_short(tmp_path: Path) -> None:
    """More than 64 KiB are refused unread."""
    records = b"8 k=val\n"
    assert index_tar(pax(tmp_path, records * (1 << 13))).keys == ["a"]
    assert_told(pax(tmp_path, records * ((1 << 13) + 1)), "65544 bytes of extended header")


def test_ustar_prefix(tmp_path: Path) -> None:
    """A long folder stands in the prefix field of a ustar header."""
    key = "d" * 90 + "/" + "f" * 60
    assert index_tar(write(tmp_path / "x.tar", {f"{key}.png": b"1"})).keys == [key]


def test_agrees_with_tarfile(tmp_path: Path) -> None:
    """Offsets and sizes are those that the standard library tells, for sizes around the block size."""
    path = write(tmp_path / "x.tar", {f"{n:04d}.png": b"x" * n for n in (0, 1, 511, 512, 513, 1023, 1024, 5000)})
    index = index_tar(path)
    with tarfile.open(path) as tar:
        expected = [(m.name[:-4], m.offset_data, m.size) for m in tar]
    assert expected == list(zip(index.keys, index.offsets.tolist(), index.sizes.tolist(), strict=True))


def test_key_ends_at_the_last_dot(tmp_path: Path) -> None:
    """Dots and folders are part of the key, so pictures that share a beginning stay apart."""
    members = {"n01.v0.jpg": b"0", "n01.v0.cls": b"0", "n01.v1.jpg": b"1", "n01.v1.cls": b"1", "d.x/n01.jpg": b"2", "d.x/n01.cls": b"2"}
    assert index_tar(write(tmp_path / "x.tar", members)).keys == ["n01.v0", "n01.v1", "d.x/n01"]


def test_members_need_not_be_neighbours(tmp_path: Path) -> None:
    """A label far from its image is still its label."""
    members = {"a.png": b"A", "b.png": b"B", "b.cls": b"1", "a.cls": b"0"}
    assert stored(index_tar(write(tmp_path / "x.tar", members))) == {"a": (b"A", 0), "b": (b"B", 1)}


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "a/../../x.png", "..\\x.png", "._a.png", "d/.x.png", "__meta__.png", "README", "a.pkl", ".png"]
)
def test_passes_over(tmp_path: Path, name: str) -> None:
    """Unsafe names, hidden files, metadata and unknown extensions are no samples."""
    assert index_tar(write(tmp_path / "x.tar", {name: b"?", **GOOD})).keys == ["a", "b"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_regular_files(tmp_path: Path, kind: bytes) -> None:
    """Links, devices, pipes and folders with an image's name are no samples."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("l.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
        info = tarfile.TarInfo("a.png")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"A"))
    assert stored(index_tar(path)) == {"a": (b"A", -1)}


@pytest.mark.parametrize(("text", "label"), [(b"3", 3), (b"3\n", 3), (b" 3 ", 3), (b"007", 7), (b"1000", 1000)])
def test_labels(tmp_path: Path, text: bytes, label: int) -> None:
    """A label is ASCII digits, with blanks around."""
    assert index_tar(write(tmp_path / "x.tar", {"a.png": b"A", "a.cls": text})).labels.tolist() == [label]


@pytest.mark.parametrize("text", [b"", b"abc", b"-1", b"3.0", b"0x3", b"1_0", b"\xef\xbb\xbf3", "٣".encode(), b"9" * 400, b"1 2"])
def test_bad_labels(tmp_path: Path, text: bytes) -> None:
    """Anything else is an error that names shard and key."""
    path = write(tmp_path / "x.tar", {"a.png": b"A", "a.cls": text})
    assert_told(path, r"x\.tar: key 'a' has the label")


def test_label_without_image(tmp_path: Path) -> None:
    """A lone label is an error."""
    assert_told(write(tmp_path / "x.tar", {"a.png": b"A", "b.cls": b"1"}), "key 'b' has a label but no image")


def test_image_without_label(tmp_path: Path) -> None:
    """A lone image is a sample without label."""
    assert index_tar(write(tmp_path / "x.tar", {"a.png": b"A", "b.png": b"B", "b.cls": b"1"})).labels.tolist() == [-1, 1]


@pytest.mark.parametrize("second", ["a.png", "a.jpg", "a.cls"])
def test_duplicates(tmp_path: Path, second: str) -> None:
    """Two images or labels of one key are an error."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "a.cls", second):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    assert_told(path, "key 'a' has two")


def cut_at(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_without_an_end_mark(tmp_path: Path) -> None:
    """An archive that its writer did not close has all its samples, and a note: it may as well have been cut between two members."""
    path = write(tmp_path / "x.tar", GOOD)
    last = index_tar(path)
    end = -(-int((last.offsets + last.sizes).max()) // 512) * 512 + 1024  # the header and the block of the last label
    for size, keys in ((end, ["a", "b"]), (end - 1024, ["a", "b"]), (2048, ["a"])):
        index = index_tar(cut_at(write(tmp_path / "x.tar", GOOD), size))
        assert (list(index.keys), index.skips) == (keys, ())
        assert f"no end mark: it may have been cut between two members, at byte {size}" in index.note
    assert index_tar(write(tmp_path / "x.tar", GOOD)).note == ""


def test_cut_within_the_padding(tmp_path: Path) -> None:
    """That no writer does: the archive is truncated, though all bytes of its last member are there."""
    assert_told(
        cut_at(write(tmp_path / "x.tar", {"a.png": b"x" * 300, "b.png": b"y"}), 1024 + 512 + 10), "truncated: the last member lacks"
    )


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe must not be waited for."""
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match="no regular file"):
        index_tar(tmp_path / "x.tar")


def test_large_members_of_pax(tmp_path: Path) -> None:
    """A member whose size stands in an extended header, since it does not fit a plain one, is passed over whole."""
    path, size = tmp_path / "x.tar", 9 << 30
    large = tarfile.TarInfo("large.bin")
    large.size = size
    header = large.tobuf(tarfile.PAX_FORMAT)
    first = write(tmp_path / "small.tar", GOOD).read_bytes()
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + size)
        file.write(first)
    assert stored_sparsely(path) == {"a": 3, "b": 12}


def stored_sparsely(path: Path) -> dict[str, int]:
    index = index_tar(path)
    assert index.skips == ()
    return dict(zip(index.keys, index.labels.tolist(), strict=True))


@pytest.mark.parametrize("cut", [1700, 1536 + 100])
def test_truncated(tmp_path: Path, cut: int) -> None:
    """A file that ends within a member or a header is an error that names the byte."""
    path = write(tmp_path / "x.tar", {"a.png": b"x" * 300, "b.png": b"y" * 1000, "c.png": b"z" * 1000})
    path.write_bytes(path.read_bytes()[:cut])
    assert_told(path, r"x\.tar: truncated: .* byte 1024")


def test_truncated_header(tmp_path: Path) -> None:
    """So is one that ends within a header."""
    path = write(tmp_path / "x.tar", {"a.png": b"x" * 300, "b.png": b"y"})
    path.write_bytes(path.read_bytes()[: 1024 + 200])
    assert_told(path, "ends within the header at byte 1024")


@pytest.mark.parametrize("byte", [0, 3, 100, 130, 150, 511])
def test_damaged_header(tmp_path: Path, byte: int) -> None:
    """One flipped bit anywhere in a header is found, where `tarfile` would end the shard without a word."""
    path = write(tmp_path / "x.tar", {"a.png": b"x" * 300, "b.png": b"y", "c.png": b"z"})
    data = bytearray(path.read_bytes())
    data[1024 + byte] ^= 1
    path.write_bytes(data)
    assert_told(path, "damaged: the block at byte 1024")


def test_joined_archives(tmp_path: Path) -> None:
    """Archives joined with `cat`, whose second part would be lost, are refused."""
    path = write(tmp_path / "x.tar", GOOD)
    path.write_bytes(path.read_bytes() * 2)
    assert_told(path, "more data behind the end mark")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\0" * 10240, "no image in this archive"),
        (b"<html>403 Forbidden</html>" * 100, "not a tar file: it begins with b'<html>403"),
        (bytes(range(256)) * 40, "not a tar file"),
        (b"\x1f\x8b\x08" + b"x" * 2000, "compressed with gzip"),
    ],
)
def test_not_a_shard(tmp_path: Path, content: bytes, message: str) -> None:
    """What is no tar is named for what it is."""
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    assert_told(path, message)


DAMAGED, HALF = "damaged shard", "label without image"
EXPECTED: dict[str, tuple[int, dict[str, int]]] = {
    "good": (10, {}), "no_eof_blocks": (10, {}), "corrupt_image_mid": (5, {}), "dotted_keys": (3, {}), "meta_members": (2, {}),
    "path_traversal": (1, {}), "pax_headers": (1, {}), "missing_cls": (5, {}), "truncated_member": (5, {DAMAGED: 1}),
    "zero_bytes": (0, {DAMAGED: 1}), "empty_archive": (0, {"no image in a shard": 1}), "garbage": (0, {DAMAGED: 1}),
    "html_error": (0, {DAMAGED: 1}), "gzipped": (0, {DAMAGED: 1}), "bad_checksum_mid": (4, {DAMAGED: 1}), "missing_image": (2, {HALF: 3}),
    "bad_cls": (4, {"bad label": 8}), "links_and_devices": (1, {HALF: 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no bad inputs at {SHARED}; set CDMKIT_TEST_DATA")
def test_bad_inputs(name: str) -> None:
    """Of each odd or broken archive of the collection what is whole is found, and what is not is told, naming it."""
    index = index_tar(SHARED / f"{name}.tar")
    assert (len(index.keys), Counter(skip.cause for skip in index.skips)) == EXPECTED[name]
    assert all(f"{name}.tar" in skip.message and skip.key in skip.message for skip in index.skips)


def test_what_lies_before_a_fault_is_kept(tmp_path: Path) -> None:
    """Samples before a damaged header stay usable; a label whose image may lie behind it is not told of as lonely."""
    path = write(tmp_path / "x.tar", {**GOOD, "c.cls": b"1", "c.png": b"picture c"})
    data = bytearray(path.read_bytes())
    data[data.index(b"c.png") + 2] ^= 1
    path.write_bytes(data)
    assert index_tar(path).keys == ["a", "b"]
    assert_told(path, "damaged")


def test_a_fault_takes_its_sample_along_and_no_other(tmp_path: Path) -> None:
    """What is wrong with one key leaves the others."""
    index = index_tar(write(tmp_path / "x.tar", {"bad.png": b"B", "bad.cls": b"x", "lonely.cls": b"1", **GOOD}))
    assert index.keys == ["a", "b"]
    assert [(skip.key, skip.cause) for skip in index.skips] == [("bad", "bad label"), ("lonely", "label without image")]


def test_an_archive_within_a_file(tmp_path: Path) -> None:
    """The members of a tar that lies in another one are found where they are."""
    inner = write(tmp_path / "inner.tar", GOOD).read_bytes()
    outer = write(tmp_path / "outer.tar", {"first": b"x" * 700, "inner.tar": inner, "last": b"y"})
    with outer.open("rb") as file:
        window = Window(file.fileno())
        (_, within, _) = members(window, outer, 0, outer.stat().st_size)
        found = {m.name: window.read(m.size, m.offset) for m in members(window, outer, within.offset, within.offset + within.size)}
    assert found == GOOD


def test_reads_through_a_window(tmp_path: Path) -> None:
    """Reads are right within, across and beyond the block that is kept, in any order."""
    path = tmp_path / "x"
    data = os.urandom(300_000)
    path.write_bytes(data)
    with path.open("rb") as file:
        window = Window(file.fileno())
        for size, offset in ((512, 0), (512, 32_700), (512, 100), (100_000, 5), (512, 299_900), (10, 400_000), (1, 0), (0, 7)):
            assert window.read(size, offset) == data[offset : offset + size]
