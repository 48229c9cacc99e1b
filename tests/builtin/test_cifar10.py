"""CIFAR-10: both versions give the published pixels, and no pickle is ever run."""

from __future__ import annotations

import functools
import gzip
import io
import os
import pickle
import pickletools
import struct
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cdmkit.builtin.cifar10 import Cifar10
from cdmkit.data.decode import decode
from cdmkit.data.tar import index_tar
from cdmkit.errors import DataError

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ROWS = 10_000


@functools.cache
def pixels(batch: str) -> npt.NDArray[np.uint8]:
    """[10000, 3072]: rows that differ from each other, from batch to batch and from plane to plane."""
    rows = np.arange(ROWS * 3072, dtype=np.uint32).reshape(ROWS, 3072)
    return np.asarray(rows * 7 // 11 + BATCHES.index(batch) * 31, np.uint32).astype(np.uint8)


def labels(batch: str) -> list[int]:
    return [(row * 3 + BATCHES.index(batch)) % 10 for row in range(ROWS)]


def planes(batch: str, row: int) -> npt.NDArray[np.uint8]:
    """A picture: [32, 32, 3]."""
    picture: npt.NDArray[np.uint8] = pixels(batch)[row].reshape(3, 32, 32)
    return picture.transpose(1, 2, 0)


def python_2(told: Mapping[str, Any]) -> bytes:
    """A pickle as Python 2 wrote those that are published: text and bytes alike are its strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    out = [b"\x80\x02}q\x01("]
    for key, value in told.items():
        out.append(text(key.encode()) + b"q\x02")
        if isinstance(value, str):
            out.append(text(value.encode()))
        elif isinstance(value, list):
            out.append(b"]q\x04(" + b"".join(number(v) if isinstance(v, int) else text(v.encode()) for v in value) + b"e")
        else:
            out.append(b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01")
            out.append(number(value.shape[0]) + number(value.shape[1]) + b"\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|")
            out.append(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(value.tobytes()) + b"tb")
    return b"".join([*out, b"u."])


def told(batch: str) -> dict[str, Any]:
    return {
        "batch_label": batch,
        "labels": labels(batch),
        "data": pixels(batch),
        "filenames": [f"{row}.png" for row in range(ROWS)],
    }


def python_3(plain: Mapping[str, Any], protocol: int = 2) -> bytes:
    """A pickle of the same, of bytes instead of text, as Python 3 writes it."""
    return pickle.dumps({key.encode(): value for key, value in plain.items()}, protocol)


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, folder: Path) -> Path:
    """A folder as tar.gz."""
    with gzip.open(path, "wb", compresslevel=0) as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, folder.name)
    return path


def empty(root: Path) -> None:
    """Remove what takes space."""
    for path in root.rglob("*"):
        if path.is_symlink() or path.is_file():
            path.unlink()


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    """A folder for large files."""
    yield tmp_path
    empty(tmp_path)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the unpacked binary and Python versions."""
    root = tmp_path_factory.mktemp("cifar")
    binary = {f"{batch}.bin": np.column_stack([np.array(labels(batch), np.uint8), pixels(batch)]).tobytes() for batch in BATCHES}
    write(root / "cifar-10-batches-bin", binary | {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode(), "readme.html": b"?"})
    meta = b"(dp1\nS'num_cases_per_batch'\np2\nI10000\nsS'label_names'\np3\n(lp4\n" + b"".join(
        f"S'{name}'\np{number}\na".encode() for number, name in enumerate(NAMES, 5)
    )
    write(root / "cifar-10-batches-py", {batch: python_2(told(batch)) for batch in BATCHES} | {"batches.meta": meta + b"s."})
    yield root
    empty(root)


@pytest.fixture
def python(published: Path, space: Path) -> Path:
    """The Python version, to be spoilt: its files are links."""
    folder = space / "cifar-10-batches-py"
    folder.mkdir()
    for path in (published / "cifar-10-batches-py").iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def check(path: Path) -> None:
    """All labels, and some pictures of all batches, are those that were written."""
    preparer, found = pickle.loads(pickle.dumps((Cifar10(), Cifar10().look(path))))  # noqa: S301  # our own
    assert found.classes == tuple(NAMES)
    for split, batches in (("train", BATCHES[:5]), ("val", BATCHES[5:])):
        names = [f"{batch}/{row:04d}" for batch in batches for row in range(ROWS)]
        assert [original.name for original in found.splits[split]] == names
        assert [original.label for original in found.splits[split]] == [label for batch in batches for label in labels(batch)]
        for number, batch in enumerate(batches):
            for row in (0, 1, 9999):
                data = preparer.read(found.splits[split][number * ROWS + row])
                assert Image.open(io.BytesIO(data)).format == "PNG"
                assert np.array_equal(decode(data), planes(batch, row))


@pytest.mark.parametrize("version", ["bin", "py"])
def test_unpacked(published: Path, version: str) -> None:
    """Pixels, labels and classes, exactly."""
    check(published / f"cifar-10-batches-{version}")


@pytest.mark.parametrize(("version", "archive"), [("bin", "cifar-10-binary.tar.gz"), ("py", "cifar-10-python.tar.gz")])
def test_packed(published: Path, space: Path, version: str, archive: str) -> None:
    """The archives are read as they are: nothing is unpacked."""
    pack(space / archive, published / f"cifar-10-batches-{version}")
    check(space / archive)
    assert os.listdir(space) == [archive]
    assert len(Cifar10().look(space).splits["val"]) == ROWS


def test_folder_of_either(published: Path) -> None:
    """Of several versions in a folder the first is taken."""
    assert "cifar-10-batches-bin" in str(Cifar10().look(published).splits["train"][0].place)


def test_versions(published: Path, python: Path, space: Path) -> None:
    """Row, size and time of the batch's file, or of the archive, without reading either."""
    for folder, suffix in ((published / "cifar-10-batches-bin", ".bin"), (python, "")):
        place = Cifar10().look(folder).splits["val"][7].place
        status = (folder / f"test_batch{suffix}").stat()
        assert place.version() == (7, status.st_size, status.st_mtime_ns)
    archive = pack(space / "cifar-10-binary.tar.gz", published / "cifar-10-batches-bin")
    place = Cifar10().look(archive).splits["train"][0].place
    assert place.version() == (0, archive.stat().st_size, archive.stat().st_mtime_ns)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_python_3(python: Path, protocol: int) -> None:
    """A version that was written anew has the same content."""
    for batch in BATCHES:
        replace(python / batch, python_3(told(batch), protocol))
    replace(python / "batches.meta", python_3({"label_names": [name.encode() for name in NAMES]}, protocol))
    check(python)


def test_the_forged_pickle_is_one() -> None:
    """What stands in for Python 2 here is a pickle, which unpickles to what it should."""
    plain = pickle.loads(python_2({"labels": [1, 300], "data": np.array([[1, 2], [3, 200]], np.uint8)}), encoding="latin-1")  # noqa: S301  # our own
    assert plain["labels"] == [1, 300]
    assert plain["data"].tolist() == [[1, 2], [3, 200]]


class Canary:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["batch_label", "labels", "data", "label_names"])
def test_nothing_is_unpickled(python: Path, tmp_path: Path, where: str, protocol: int) -> None:
    """A pickle that would write a file is refused, and writes none."""
    canary = Canary(tmp_path / "sung")
    batch = python / ("batches.meta" if where == "label_names" else "data_batch_3")
    plain: dict[str, Any] = (
        {"label_names": canary}
        if where == "label_names"
        else {"batch_label": "x", "labels": [1], "data": np.zeros((1, 3072), np.uint8), where: canary}
    )
    poisoned = python_3(plain, protocol)
    pickle.loads(poisoned)[where.encode()].close()  # noqa: S301  # to see that it would
    assert canary.path.exists()
    canary.path.unlink()
    replace(batch, poisoned)
    with pytest.raises(DataError, match=rf"{batch.name} is not the pickle that CIFAR-10 has .it would import '(io|_io|__builtin__) open'"):
        Cifar10().look(python)
    assert not canary.path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((9999, 3072), np.uint8)}, "no array of 10000 x 3072 bytes"),
        ({"data": np.zeros((3072, 10000), np.uint8)}, "no array of 10000 x 3072 bytes"),
        ({"data": np.zeros((ROWS, 3072), np.int8)}, "no array of 10000 x 3072 bytes"),
        ({"data": np.zeros((ROWS, 3072), np.uint8, order="F")}, "no array of 10000 x 3072 bytes"),
        ({"data": [1, 2, 3]}, "no array of 10000 x 3072 bytes"),
        ({"labels": [1] * 9999}, "no list of 10000 labels"),
        ({"labels": [10] * ROWS}, "no list of 10000 labels"),
        ({"labels": [-1] * ROWS}, "no list of 10000 labels"),
        ({"labels": [True] * ROWS}, "no list of 10000 labels"),
        ({"labels": "1" * ROWS}, "no list of 10000 labels"),
        ({"labels": {1: 2}}, "the key 1"),
    ],
)
def test_other_content(python: Path, changes: dict[str, Any], message: str) -> None:
    """What has another size, type or order than the published files is refused."""
    replace(python / "data_batch_1", python_3(told("data_batch_1") | changes))
    with pytest.raises(DataError, match=rf"data_batch_1.*{message}"):
        Cifar10().look(python)


DAMAGED = (
    b"", b"<html>", b"\x80\x02", b"\x80\x02}.", b"\x80\x02]q\x01.", b"N.", b"\x80\x02R.", b"t.", b"h\x07.", b"}}}s.", b"(dK\x01a.",
    b"}K\x01K\x02b.", b"K\x01K\x02\x86R.", b"\x8a\x01", b"cos\nsystem\n(S'true'\ntR.", b"(ios\nsystem\n.", b"Pid\n.", b"\x82\x01.",
    b"}(U\x01au.", b"I99x\n.", b"T\xff\xff\xff\xff.", b"c_codecs\nencode\n)R.", b"c_codecs\nencode\n]R.", b"}]]s.", b"}(]]u.", b"(.",
    b"c_codecs\nencode\nNb.", b"}N}s.",
)  # fmt: skip


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_pickles(python: Path, data: bytes) -> None:
    """Whatever they are: one error that names the file."""
    replace(python / "data_batch_1", data)
    with pytest.raises(DataError, match="data_batch_1"):
        Cifar10().look(python)


@pytest.mark.parametrize("opcode", [b"\x85", b"\x86"])
def test_deep_pickles(python: Path, opcode: bytes) -> None:
    """A tuple in a tuple, and so on: what would exhaust Python's stack is refused as all else."""
    item = b"N" if opcode == b"\x86" else b""
    replace(python / "data_batch_1", b"\x80\x02})" + (item + opcode) * 100_000 + b"K\x01s.")
    with pytest.raises(DataError, match="data_batch_1 is not the pickle that CIFAR-10 has"):
        Cifar10().look(python)


def test_every_truncation_of_a_pickle(python: Path) -> None:
    """Wherever it ends, it is refused."""
    small = python_2({"labels": [1, 2], "data": np.zeros((2, 3), np.uint8)})
    for end in [position for _, _, position in pickletools.genops(small) if position is not None]:
        replace(python / "data_batch_1", small[:end])
        with pytest.raises(DataError, match="data_batch_1"):
            Cifar10().look(python)


def test_missing_and_cut_files(published: Path, space: Path) -> None:
    """All that is missing is named, and what has the wrong size."""
    folder = space / "cifar-10-batches-bin"
    folder.mkdir()
    for name in ("data_batch_1.bin", "data_batch_3.bin", "data_batch_4.bin"):
        (folder / name).symlink_to(published / "cifar-10-batches-bin" / name)
    with pytest.raises(DataError, match=r"lacks data_batch_2.bin, data_batch_5.bin, test_batch.bin, batches.meta.txt: "):
        Cifar10().look(space)
    with pytest.raises(DataError, match=r"x.tar.gz lacks data_batch_2.bin"):
        Cifar10().look(pack(space / "x.tar.gz", write(space / "x", {"data_batch_1.bin": b""})))
    for name in ("data_batch_2.bin", "data_batch_5.bin", "test_batch.bin", "batches.meta.txt"):
        (folder / name).symlink_to(published / "cifar-10-batches-bin" / name)
    replace(folder / "data_batch_4.bin", bytes(ROWS * 3073 - 1))
    with pytest.raises(DataError, match=r"data_batch_4.bin has 30729999 bytes, not 30730000"):
        Cifar10().look(folder)
    replace(folder / "data_batch_4.bin", b"\x0a" + bytes(ROWS * 3073 - 1))
    with pytest.raises(DataError, match=r"data_batch_4.bin: no list of 10000 labels from 0 to 9"):
        Cifar10().look(folder)
    replace(folder / "data_batch_4.bin", bytes(ROWS * 3073))
    replace(folder / "batches.meta.txt", b"cat\ndog\n")
    with pytest.raises(DataError, match=r"batches.meta.txt: no names of 10 classes"):
        Cifar10().look(folder)


def test_nothing_there(space: Path) -> None:
    """What was looked for is told."""
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*cifar-10-binary.tar.gz"):
        Cifar10().look(space)
    (space / "cifar-10-python.tar.gz").write_bytes(b"<html>")
    with pytest.raises(DataError, match="cannot be read as a tar archive"):
        Cifar10().look(space)


def test_real_pixels(space: Path) -> None:
    """Photographs that are stored as planes come back as the same pictures."""
    if not (SHARED / "cifar10-lossless").is_dir():
        pytest.skip(f"no cifar10-lossless at {SHARED}; set CDMKIT_TEST_DATA")
    index = index_tar(SHARED / "cifar10-lossless" / "val-00000.tar")
    data = index.path.read_bytes()
    rows = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
    pictures = np.stack([decode(data[offset : offset + size]) for offset, size in rows])
    stored = np.resize(pictures.transpose(0, 3, 1, 2).reshape(-1, 3072), (ROWS, 3072))
    batch = np.column_stack([np.resize(index.labels, ROWS).astype(np.uint8), stored]).tobytes()
    files = {f"{name}.bin": batch for name in BATCHES} | {"batches.meta.txt": "\n".join(NAMES).encode()}
    originals = Cifar10().look(write(space, files)).splits["train"][: len(pictures)]
    for original, picture, label in zip(originals, pictures, index.labels.tolist(), strict=True):
        assert original.label == label
        assert np.array_equal(decode(Cifar10().read(original)), picture)
