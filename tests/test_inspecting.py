"""What is shown of a data set, and of what a recipe's stages see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdmkit.data.writer import Sample, write_shards
from tests import tiny


def stored(folder: Path, labels: Sequence[int | None], prefix: str = "train") -> None:
    """Images of one colour each: that of its number."""
    images = [torch.full((3, 8, 8), number, dtype=torch.uint8) for number in range(len(labels))]
    write_shards((Sample(image, label) for image, label in zip(images, labels, strict=True)), folder, prefix, per_shard=40)


def listed(folder: Path) -> None:
    """A list of the shards of two splits."""
    splits = {
        split: {"shards": [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(folder.glob(f"{split}-*.tar"))]}
        for split in ("train", "val")
    }
    (folder / "dataset.json").write_text(json.dumps({"classes": ["cat", "dog", "owl"], "splits": splits}))


def colours(path: Path, columns: int, size: int = 8) -> list[int]:
    """The first channel at the centre of each tile of a grid of plain images."""
    with Image.open(path) as grid:
        tile = (grid.width + 2) // columns
        rows = (grid.height + 2) // tile
        return [int(grid.getpixel((c * tile + size, r * tile + size))[0]) for r in range(rows) for c in range(columns)]  # type: ignore[index]


def test_counts_classes_and_a_grid(tmp_path: Path) -> None:
    """Of each split, with the names that the list has for its labels."""
    stored(tmp_path, [0] * 60 + [2] * 20)
    stored(tmp_path, [1] * 3, "val")
    listed(tmp_path)
    result = tiny.call("data", "inspect", tmp_path, "--out", tmp_path / "look")
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "train: 80 images in 2 shards" in result.stdout
    assert "val: 3 images in 1 shard," in result.stdout
    assert "sizes of 80 looked at: 8 x 8 (80); 0 broken" in lines
    assert [line.rstrip("# ") for line in lines if line.startswith(("0 cat", "1 dog", "2 owl"))][:3] == ["0 cat 60", "1 dog 0", "2 owl 20"]
    assert colours(tmp_path / "look" / "train.png", 4) == [0, 5, 11, 16, 21, 26, 32, 37, 42, 47, 53, 58, 63, 68, 74, 79]
    assert colours(tmp_path / "look" / "val.png", 3) == [0, 1, 2]


def test_one_split_as_json(tmp_path: Path) -> None:
    """With the same facts."""
    stored(tmp_path, [0] * 60 + [2] * 20)
    stored(tmp_path, [1] * 3, "val")
    listed(tmp_path)
    told = json.loads(tiny.call("data", "inspect", tmp_path, "--split", "val", "--json", "--out", tmp_path / "look").stdout)
    assert list(told) == ["val"]
    val = told["val"]
    assert (val["images"], val["shards"], val["per_class"], val["classes"]) == (3, 1, [0, 3], ["cat", "dog", "owl"])
    assert val["bytes"] >= sum(val["file_bytes"]) - 2
    assert Path(val["grid"]).is_file()


def test_a_pattern_with_damage(tmp_path: Path) -> None:
    """What is broken is counted and told; the rest is shown."""
    stored(tmp_path, [None] * 5)
    path = tmp_path / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"train-0000002.png") + 512 + 50] ^= 1
    data[data.index(b"train-0000004.png") + 3] ^= 1
    path.write_bytes(data)
    result = tiny.call("data", "inspect", f"{tmp_path}/*.tar", "--out", tmp_path / "look")
    assert result.exit_code == 0, result.stderr
    assert "4 looked at: 8 x 8 (3); 1 broken" in result.stdout
    assert "no labels" in result.stdout
    assert "warning: " in result.stderr
    assert "train-00000.tar: damaged" in result.stderr
    assert colours(tmp_path / "look" / "images.png", 3) == [0, 1, 3]


def test_many_classes_are_told_in_short(tmp_path: Path) -> None:
    """The fewest and the most images of a class."""
    stored(tmp_path, [*range(60), 7, 7])
    result = tiny.call("data", "inspect", f"{tmp_path}/*.tar", "--out", tmp_path / "look")
    assert "60 classes of 1 (class 0) to 3 (class 7) images; 0 are empty" in result.stdout


def test_what_the_stages_of_a_recipe_see(tmp_path: Path) -> None:
    """A grid of each stage's images, and one of what an augmentation does: low resolution, augmented, and what is to be made of it."""
    result = tiny.call("data", "inspect", tiny.write(tmp_path), "--out", tmp_path / "look")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"base.png", "fine.png", "fine-augmented.png"}
    with Image.open(tmp_path / "look" / "fine.png") as whole, Image.open(tmp_path / "look" / "fine-augmented.png") as grid:
        tile = (grid.width + 2) // 8
        assert grid.height + 2 == 3 * tile
        rows = [grid.crop((0, row * tile, grid.width, row * tile + tile - 2)).tobytes() for row in range(3)]
        assert rows[2] == whole.tobytes()
        assert len(set(rows)) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("{folder}",), 5, "has no list of shards"),
        (("{folder}/none/*.tar",), 5, "does not exist"),
        (("{folder}/tiny.toml", "--split", "val"), 2, "--split goes with shards"),
        (("{folder}/*.tar", "--set", "seed=1"), 2, "--set goes with a recipe"),
        (("{folder}/none.toml",), 3, "none.toml"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """One clear line each."""
    tiny.write(tmp_path)
    result = tiny.call("data", "inspect", *(argument.format(folder=tmp_path) for argument in arguments))
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_verify_says_what_is_wrong(tmp_path: Path) -> None:
    """A table and exit code 5; nothing but a line where all is well; the same as JSON."""
    stored(tmp_path, [0] * 5)
    good = tiny.call("data", "verify", f"{tmp_path}/*.tar")
    assert (good.exit_code, good.stdout) == (0, "5 images in 1 shard: all is well\n")
    path = tmp_path / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"train-0000002.png") + 512 + 50] ^= 1
    path.write_bytes(data)
    bad = tiny.call("data", "verify", f"{tmp_path}/*.tar", "--workers", 1)
    assert bad.exit_code == 5
    assert "train-0000002" in bad.stdout
    assert bad.stderr.endswith("1 fault among 5 images: mend the data, or prepare them again\n")
    told = json.loads(tiny.call("data", "verify", f"{tmp_path}/*.tar", "--json").stdout)
    assert (told["images"], told["shards"], [fault["key"] for fault in told["faults"]]) == (5, 1, ["train-0000002"])
