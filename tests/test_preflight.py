"""What is looked at before a run, what is left out and told of, and images that nothing is learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cdmkit.builtin.shapes import Shapes
from cdmkit.data.writer import Sample, write_shards
from tests import tiny


def store(folder: Path, split: str, count: int = 40, *, seed: int = 0, crop: str = "", bad: tuple[int, ...] = ()) -> str:
    """Shapes with labels 0 to 7 in a shard, some of them damaged, and a list of it; its pattern."""
    images, labels = Shapes(resolution=8, classes=8, seed=seed).render(torch.arange(count))
    (path,) = write_shards((Sample(i, int(n)) for i, n in zip(images, labels, strict=True)), folder, prefix=split)
    data = bytearray(path.read_bytes())
    for number in bad:
        data[data.index(f"{split}-{number:07d}.png".encode()) + 512 + 50] ^= 1
    path.write_bytes(data)
    shards = [{"file": path.name, "bytes": len(data), "samples": count}]
    (folder / "dataset.json").write_text(json.dumps({"splits": {split: {"shards": shards}}, "crop": crop}))
    return f"{folder}/{split}-*.tar"


def on(source: str, val: str = "", *more: str) -> tuple[str, ...]:
    """The options that put the tiny recipe on shards."""
    sets = [f'data.source={{ type = "webdataset", shards = "{source}" }}']
    if val:
        sets.append(f'data.val.source={{ type = "webdataset", shards = "{val}" }}')
    return tuple(word for text in (*sets, *more) for word in ("--set", text))


def told(run: Path, event: str) -> list[dict[str, Any]]:
    entries = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["event"] == event]


# Samples that cannot be used


def test_damaged_samples_end_a_run_by_default(tmp_path: Path) -> None:
    """Exit code 5, naming shard, key and cause, and what can be done."""
    pattern = store(tmp_path / "data", "train", 8, bad=(2, 3))
    result = tiny.call("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", *on(pattern))
    assert result.exit_code == 5
    assert "train-00000.tar: key 'train-000000" in result.stderr
    assert "damaged or truncated image: " in result.stderr
    assert 'damaged = "skip"' in result.stderr


def test_damaged_samples_can_be_left_out(tmp_path: Path) -> None:
    """The run goes to its end; events name every one, people are warned once of each cause, metrics count."""
    pattern = store(tmp_path / "data", "train", 16, bad=(2, 3, 7))
    patient = ('data.source.damaged="skip"', "data.source.max_skipped=0.2", "stage.base.train.steps=8")
    recipe = tiny.write(tmp_path)
    result = tiny.call("run", recipe, "--run", tmp_path / "run", *on(pattern, "", *patient))
    assert result.exit_code == 0, result.stderr
    skips = told(tmp_path / "run", "sample_skipped")
    assert {skip["key"] for skip in skips} == {"train-0000002", "train-0000003", "train-0000007"}
    assert all(skip["shard"].endswith("train-00000.tar") and skip["cause"] == "damaged or truncated image" for skip in skips)
    assert result.stderr.count("warning: ") == 1
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(entry["skipped"] for entry in metrics) == 3


def test_what_is_left_out_leaves_training_exact(tmp_path: Path) -> None:
    """A run that is stopped half-way and resumed ends with the weights of one that was not, bad samples or not."""
    pattern = store(tmp_path / "data", "train", 16, bad=(0, 5, 6, 15))
    patient = ('data.source.damaged="skip"', "data.source.max_skipped=0.5")
    recipe = tiny.write(tmp_path)
    assert tiny.call("run", recipe, "--run", tmp_path / "whole", *on(pattern, "", *patient)).exit_code == 0
    half = (*patient, "defaults.stage.train.steps=2")
    assert tiny.call("run", recipe, "--run", tmp_path / "parts", *on(pattern, "", *half)).exit_code == 0
    resumed = tiny.call("run", recipe, "--run", tmp_path / "parts", "--resume", *on(pattern, "", *patient))
    assert resumed.exit_code == 0, resumed.stderr
    assert tiny.weights(tmp_path / "whole") == tiny.weights(tmp_path / "parts")


def test_too_many_end_a_run(tmp_path: Path) -> None:
    """With the count, the share and the first of them."""
    pattern = store(tmp_path / "data", "train", 16, bad=(1, 2, 3))
    patient = ('data.source.damaged="skip"', "data.source.max_skipped=0.1")
    result = tiny.call("run", tiny.write(tmp_path), "--run", tmp_path / "run", *on(pattern, "", *patient))
    assert result.exit_code == 5
    assert "2 of 16 samples cannot be used, more than max_skipped = 0.1 of the source allows. The first: " in result.stderr


def test_labels_that_no_image_has_are_told(tmp_path: Path) -> None:
    """A network with more classes than the data is warned of, not refused."""
    pattern = store(tmp_path / "data", "train", 16)
    result = tiny.call("run", tiny.write(tmp_path), "--run", tmp_path / "run", *on(pattern, "", "data.classes=9"))
    assert result.exit_code == 0, result.stderr
    assert "warning: data.classes = 9, but the largest label is 7" in result.stderr


def test_a_label_that_is_too_large_is_named(tmp_path: Path) -> None:
    """With the key that has it."""
    pattern = store(tmp_path / "data", "train", 16)
    result = tiny.call("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", *on(pattern, "", "data.classes=7"))
    assert result.exit_code == 5
    assert "labels go up to 7 (such as that of " in result.stderr
    assert "train-00000.tar: key 'train-000000" in result.stderr


# Images that nothing is learned from


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with validation images."""
    folder = tmp_path_factory.mktemp("held")
    train, val = store(folder / "train", "train", crop="adm"), store(folder / "val", "val", 20, seed=1, crop="adm")
    return tiny.run(tiny.write(folder), *on(train, val))


def test_previews_show_validation_images(held_out: Path) -> None:
    """Their third row is the originals, pixel for pixel."""
    source = Shapes(resolution=8, classes=8, count=20, seed=1)
    with source.open(8, 0, 1, 0, 0) as batches:
        image = next(batches).images[0]
    with Image.open(held_out / "stages" / "fine" / "samples" / "step-00000004.png") as grid:
        tile = (grid.width + 2) // 8
        shown = grid.crop((0, 2 * tile, tile - 2, 3 * tile - 2)).resize((8, 8), Image.Resampling.NEAREST)
    assert list(shown.tobytes()) == image.permute(1, 2, 0).flatten().tolist()


def test_they_change_nothing_that_is_learned(held_out: Path, tmp_path: Path) -> None:
    """The weights are those of a run without; it may be resumed with others."""
    train = f"{held_out.parents[2]}/train/train-*.tar"
    assert tiny.weights(tiny.run(tiny.write(tmp_path), *on(train))).keys() == tiny.weights(held_out).keys()
    ours, theirs = tiny.weights(tiny.run(tiny.write(tmp_path), *on(train))), tiny.weights(held_out)
    assert {n: d for n, d in ours.items() if "metadata" not in n} == {n: d for n, d in theirs.items() if "metadata" not in n}


def test_bits_per_dimension_are_of_validation_images(held_out: Path, tmp_path: Path) -> None:
    """By default, where there are any; of training images on demand."""
    said, asked = (
        tiny.call("eval", held_out, "--stage", "base", "--count", 20, "--out", tmp_path / str(len(more)), *more)
        for more in ((), ("--split", "train"))
    )
    assert "20 validation images" in said.stdout
    assert "20 training images" in asked.stdout
    val, train = (json.loads((tmp_path / str(n) / "bpd-base.json").read_text()) for n in (0, 2))
    assert (val["split"], train["split"]) == ("val", "train")
    assert val["total"] != train["total"]
    result = tiny.call("eval", held_out, "--stage", "base", "--count", 21)
    assert (result.exit_code, "the val data has 20 images, not 21" in result.stderr) == (2, True)


def test_a_split_that_is_not_there(trained: Path) -> None:
    """Is told of, with the table that is missing."""
    result = tiny.call("eval", trained, "--split", "val", "--count", 2)
    assert (result.exit_code, "add a table [data.val]" in result.stderr) == (2, True)


@pytest.mark.parametrize(("crop", "words"), [("biggan", "have the crop biggan, but training images adm"), ("", None)])
def test_both_must_be_made_alike(tmp_path: Path, crop: str, words: str | None) -> None:
    """As far as their lists tell."""
    train, val = store(tmp_path / "t", "train", crop="adm"), store(tmp_path / "v", "val", crop=crop)
    result = tiny.call("run", tiny.write(tmp_path), "--run", tmp_path / "run", *on(train, val))
    assert result.exit_code == (5 if words else 0), result.stderr
    assert words is None or words in result.stderr


def test_weights_know_how_their_images_were_made(held_out: Path, tmp_path: Path) -> None:
    """Shown images of another crop, or shrunk in another way, they would tell nothing: that is refused, exit code 7."""
    val = store(tmp_path / "v", "val", crop="biggan")
    train = store(tmp_path / "t", "train", crop="biggan")
    result = tiny.call("eval", held_out, "--stage", "base", "--count", 2, *on(train, val))
    assert result.exit_code == 7
    assert "trained on images cropped by 'adm'" in result.stderr
    result = tiny.call("eval", held_out, "--stage", "base", "--count", 2, "--set", 'data.downsample="bicubic"')
    assert result.exit_code == 7
    assert "made smaller by 'area'" in result.stderr


def test_the_order_of_a_run_is_kept(tmp_path: Path) -> None:
    """Images that are shuffled in another way would come twice or never: a resumed run refuses that. Workers and policy are free."""
    pattern = store(tmp_path / "data", "train", 16)
    recipe = tiny.write(tmp_path)
    half = tiny.call("run", recipe, "--run", tmp_path / "run", *on(pattern, "", "defaults.stage.train.steps=2", "data.source.mix=1"))
    assert half.exit_code == 0, half.stderr
    refused = tiny.call("run", recipe, "--run", tmp_path / "run", "--resume", *on(pattern))
    assert (refused.exit_code, "data.source.mix: 1 -> 0" in refused.stderr) == (3, True), refused.stderr
    free = ("data.source.mix=1", "data.source.workers=0", 'data.source.damaged="skip"')
    resumed = tiny.call("run", recipe, "--run", tmp_path / "run", "--resume", *on(pattern, "", *free))
    assert resumed.exit_code == 0, resumed.stderr
    whole = tiny.call("run", recipe, "--run", tmp_path / "whole", *on(pattern, "", "data.source.mix=1"))
    assert whole.exit_code == 0
    assert {n: d for n, d in tiny.weights(tmp_path / "run").items() if n.endswith("safetensors")}.keys()
    ours, theirs = tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "whole")
    assert all(ours[name] == theirs[name] for name in ours if "training" in name)


def test_an_archive_without_an_end_is_warned_of(tmp_path: Path) -> None:
    """It may have been cut between two members."""
    pattern = store(tmp_path / "data", "train", 16)
    (tmp_path / "data" / "dataset.json").unlink()
    path = tmp_path / "data" / "train-00000.tar"
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data.ljust(-(-len(data) // 512) * 512, b"\0"))
    result = tiny.call("run", tiny.write(tmp_path), "--run", tmp_path / "run", *on(pattern))
    assert result.exit_code == 0, result.stderr
    assert "warning: " in result.stderr
    assert "no end mark" in result.stderr
