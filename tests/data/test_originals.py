"""What preparers share: walking folders, names for a manifest, reading pieces of files."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cdmkit.data.originals import Piece, bytes_of, in_order, is_like_a_split, kept, members_of_archive, shown, splits_in, walk, why_no_image
from cdmkit.errors import DataError
from cdmkit.kinds import Original


def touch(root: Path, *names: str) -> Path:
    """A folder with these files."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


def test_images_by_their_names(tmp_path: Path) -> None:
    """Extensions of images in any case are taken, in the order of names; everything else is counted by why, with its usual extension."""
    images = ["B.PNG", "a.JPEG", "a.jpg", "d/e/f.webp", "d/g.Bmp", "x. y.jpeg"]
    junk = [".DS_Store", "._a.jpg", "__MACOSX/a.jpg", ".git/a.jpg", "Thumbs.db", "Desktop.ini", "d/__init__.jpg"]
    touch(
        tmp_path, *images, *junk, "notes.txt", "more.TXT", "a.jpg.part", "d/a.gif", "a.mp4", "log.1", "log.20240101", "v1.0 of it", "x.3f2a"
    )
    passed_over: Counter[str] = Counter()
    assert walk(tmp_path, passed_over) == sorted(images)
    assert passed_over == {
        "hidden file": 7,
        "no image by its name (.txt)": 2,
        "no image by its name (.part)": 1,
        "no image by its name (.gif)": 1,
        "no image by its name (.mp4)": 1,
        "no image by its name": 4,
    }


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_names_without_an_extension(tmp_path: Path, format: str) -> None:
    """Their first bytes tell: texts, empty files and other formats are counted, whatever they begin with; images are taken."""
    Image.new("RGB", (9, 9)).save(tmp_path / "picture", format=format)
    for name, data in {
        "LICENSE": b"MIT License",
        "README": b"BMP files, and how to read them",
        "empty": b"",
        "a.": b"RIFF0000WAVEfmt ",
    }.items():
        (tmp_path / name).write_bytes(data)
    passed_over: Counter[str] = Counter()
    taken = format in ("JPEG", "PNG", "WEBP", "BMP")
    assert walk(tmp_path, passed_over) == ["picture"] * taken
    assert passed_over == {"no image by its content": 4 + (not taken)}


def test_unreadable_names_without_an_extension() -> None:
    """They are not dropped: whoever reads them tells why that cannot be."""
    assert why_no_image("picture", lambda: None) == ""


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """Pipes and links that lead nowhere, or to themselves, are counted, not opened."""
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    passed_over: Counter[str] = Counter()
    assert walk(tmp_path, passed_over) == ["a.jpg"]
    assert passed_over == {"not a regular file": 3}


def test_links_are_followed(tmp_path: Path) -> None:
    """Files and folders that lie elsewhere are listed under the names of their links."""
    touch(tmp_path / "elsewhere", "one.jpg", "deep/two.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "y.jpg").symlink_to(tmp_path / "elsewhere" / "one.jpg")
    assert walk(tmp_path / "root", Counter()) == ["x/deep/two.jpg", "x/one.jpg", "y.jpg"]


def test_loops_end_and_folders_keep_their_own_names(tmp_path: Path) -> None:
    """A folder is listed once: under its own name, though a link to it sorts before that. No link leads out of the root upwards."""
    touch(tmp_path, "root/a/1.jpg", "root/b/2.jpg", "beside/3.jpg")
    (tmp_path / "root" / "a" / "again").symlink_to("../b")
    (tmp_path / "root" / "a" / "loop").symlink_to(".")
    (tmp_path / "root" / "b" / "up").symlink_to(tmp_path)
    passed_over: Counter[str] = Counter()
    assert walk(tmp_path / "root", passed_over) == ["a/1.jpg", "b/2.jpg"]
    assert passed_over == {"link to a folder that is listed already": 3}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_unreadable_folders_are_errors(tmp_path: Path) -> None:
    """What cannot be listed would be lost in silence."""
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(DataError, match="a cannot be listed: Permission denied"):
            walk(tmp_path, Counter())
    finally:
        (tmp_path / "a").chmod(0o700)


def test_names_fit_a_manifest() -> None:
    """Any name becomes a line of UTF-8 without tabs; plain ones stay, and different ones stay different."""
    names = ["é 中.jpg", "a b..c.jpg", "\udcff.jpg", "\\xff.jpg", "\\\\xff.jpg", "a\tb", "a\nb", "a\\u000ab", "\x85", "\udc85", "\\u0085"]
    names += ["\ud800"]
    told = [shown(name) for name in names]
    assert told[:4] == ["é 中.jpg", "a b..c.jpg", "\\xff.jpg", "\\\\xff.jpg"]
    assert len(set(told)) == len(names)
    for name in told:
        assert name.encode().decode().splitlines() == [name]
        assert "\t" not in name


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}])
def test_names_do_not_depend_on_the_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    """The bytes of a name count, not what Python makes of them."""
    raw = ["é 中.jpg".encode(), b"raw\xff.jpg", "\N{FULLWIDTH LATIN SMALL LETTER A}.jpg".encode()]
    for name in raw:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    program = """if True:
        import collections, pathlib, sys
        from cdmkit.data.originals import shown, utf8, walk
        names = [*walk(pathlib.Path(sys.argv[1]), collections.Counter()), utf8("tar/\\udcff \\xe9.jpg")]
        print(*sorted(ascii(shown(name)) for name in names), sep="\\n")
    """
    told = subprocess.run([sys.executable, "-c", program, tmp_path], env=os.environ | locale, capture_output=True, text=True)
    expected = ["é 中.jpg", "raw\\xff.jpg", "\uff41.jpg", "tar/\\xff é.jpg"]
    assert told.stdout.splitlines() == sorted(map(ascii, expected)), told.stderr


def test_order_is_that_of_names(tmp_path: Path) -> None:
    """However they were found; two of one name cannot be told apart."""
    one, two = Original("a", 1, "x"), Original("b", 0, "y")
    assert in_order([two, one], tmp_path) == in_order([one, two], tmp_path) == [one, two]
    with pytest.raises(DataError, match="two images are called 'a'"):
        in_order([one, two, one], tmp_path)


def test_pieces(tmp_path: Path) -> None:
    """All of a file or a part of it, also after a trip to another process."""
    (tmp_path / "file").write_bytes(b"0123456789")
    for piece, expected in ((Piece(str(tmp_path), "file"), b"0123456789"), (Piece(str(tmp_path), "file", 3, 4), b"3456")):
        assert piece.read() == pickle.loads(pickle.dumps(piece)).read() == expected  # noqa: S301  # our own


def test_pieces_that_cannot_be_read(tmp_path: Path) -> None:
    """Files that are gone, have become shorter or pipes, or are too large, are errors and never hang. A fault of the disk is its cause."""
    place = str(tmp_path)
    (tmp_path / "short").write_bytes(b"0123")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((1 << 30) + 1)
    for piece, message in (
        (Piece(place, "short", 2, 3), "shorter"),
        (Piece(place, "pipe"), "not a regular file"),
        (Piece(place, "huge"), "1 GiB"),
        (Piece(place, "huge", 0, (1 << 30) + 1), "1 GiB"),
    ):
        with pytest.raises(DataError, match=message):
            piece.read()
    for piece in (Piece(place, "gone"), Piece(place, "gone", 0, 1)):
        with pytest.raises(DataError, match="cannot be read: No such file") as told:
            piece.read()
        assert isinstance(told.value.__cause__, OSError)


def test_versions_tell_content_apart(tmp_path: Path) -> None:
    """Of a whole file, size and time; of a part, its place too, and those of its file as they were first seen in this process."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    os.utime(file, ns=(1, 10**9))
    whole, part = Piece(str(tmp_path), "file"), Piece(str(tmp_path), "file", 3, 4)
    assert (whole.version(), part.version()) == ((10, 10**9), (3, 4, 10, 10**9))
    assert part._replace(offset=2).version() == (2, 4, 10, 10**9)
    os.utime(file, ns=(1, 10**9 + 1))
    assert whole.version() == (10, 10**9 + 1)
    file.unlink()
    assert part.version() == (3, 4, 10, 10**9)  # it is not looked at again
    for piece in (whole, Piece(str(tmp_path), "gone", 0, 1)):
        with pytest.raises(DataError, match="cannot be read: No such file"):
            piece.version()


def test_bytes_of_files(tmp_path: Path) -> None:
    """A whole file, or an error that names it."""
    (tmp_path / "file").write_bytes(b"0123")
    assert bytes_of(tmp_path / "file") == b"0123"
    with pytest.raises(DataError, match=r"gone: cannot be read: No such file"):
        bytes_of(tmp_path / "gone")


def test_words_that_tell_splits() -> None:
    """In any case, and among others; words that are much like them are suspected."""
    told = {
        "imagenet-TRAIN-00-of-99": "train",
        "training_set": "train",
        "Val": "val",
        "x.valid.1": "val",
        "dev2017": "val",
        "testing": "test",
    }
    assert {name: splits_in(name) for name in told} == {name: {split} for name, split in told.items()}
    assert splits_in("train+val") == {"train", "val"}
    for name in ("cats", "trained", "latest", "vale", "0"):
        assert splits_in(name) == set()
    assert all(map(is_like_a_split, ("val_images", "Train2", "vaild", "trian", "testset", *told)))
    assert not any(map(is_like_a_split, ("cat", "dog", "n01440764", "extra", "unlabeled2017", "labels")))


def test_few_files_stay_open(tmp_path: Path) -> None:
    """However many files parts are read of."""
    pieces = [Piece(str(tmp_path), f"{number}", 0, 1) for number in range(200)]
    touch(tmp_path, *(piece.file for piece in pieces))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    assert all(piece.read() == piece.file[:1].encode() for piece in pieces)
    assert not before or len(os.listdir("/proc/self/fd")) - before <= 64


def test_what_is_kept_is_not_carried_over_a_fork() -> None:
    """A process keeps the last results; one that is forked from it makes its own."""

    @kept(2)
    def opened(name: str) -> tuple[str, int]:
        return name, os.getpid()

    first = opened("a")
    assert opened("a") is first
    child = os.fork()
    if not child:
        os._exit(0 if opened("a") == ("a", os.getpid()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    opened("b")
    opened("c")
    assert opened("a") is not first


def test_members_of_archive(tmp_path: Path) -> None:
    """Regular files of the wanted names, from whichever folder in the archive; nothing is written."""
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (("kit/data/a", b"A"), ("../b", b"B"), ("c", b"C")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert members_of_archive(path, ("a", "b", "d")) == {"a": b"A", "b": b"B"}
    assert os.listdir(tmp_path) == ["x.tar.gz"]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x1f\x8b\x08" + b"x" * 999])
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    """What cannot be unpacked is an error that names the archive."""
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"x.tar.gz cannot be read as a tar archive"):
        members_of_archive(tmp_path / "x.tar.gz", ("a",))


def test_truncated_archives(tmp_path: Path) -> None:
    """One that ends too early is no shorter archive."""
    path, info = tmp_path / "x.tar.gz", tarfile.TarInfo("a")
    info.size = 1 << 20
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    path.write_bytes(path.read_bytes()[: 1 << 19])
    with pytest.raises(DataError, match=r"x.tar.gz cannot be read as a tar archive"):
        members_of_archive(path, ("a",))
