"""`cdmkit data prepare`: what it is told, what it tells, and its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from cdmkit.cli.preparing import Pace
from cdmkit.cli.preparing import prepare as command
from cdmkit.component import option_of
from cdmkit.preparing import MAX_REJECT, Settings, Step
from tests import tiny
from tests.test_startup import imported

FAST = ("--resolution", "8", "--workers", "0")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four pictures."""
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(generator.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def prepare(photos: Path, *arguments: object) -> Result:
    return tiny.call("data", "prepare", "folder", photos, photos.parent / "out", *FAST, *arguments)


def test_photos_to_shards(photos: Path) -> None:
    """Prints the path of the card, and tells what is in the data set; again, and it says that it is finished."""
    (photos / "cats" / ".DS_Store").touch()
    result = prepare(photos, "--license", "mine")
    assert (result.exit_code, result.stdout) == (0, f"{photos.parent}/out/dataset.json\n")
    assert "passed over: hidden file (1)\n" in result.stderr
    assert "train: 8/8  " in result.stderr
    assert "train: 8 images in 1 shard, 0 rejected, 0 enlarged\nclass 0 (cats): 4 train\nclass 1 (dogs): 4 train\n" in result.stderr
    assert json.loads(Path(result.stdout.strip()).read_text())["license"] == "mine"
    result = prepare(photos, "--license", "mine")
    assert (result.exit_code, result.stdout) == (0, f"{photos.parent}/out/dataset.json\n")
    assert f"{photos.parent}/out: finished already, unchanged\n" in result.stderr
    assert "finished already, unchanged" in prepare(photos).stderr  # without a licence, the old one stays
    assert "out: finished already; licence changed to 'yours'\n" in prepare(photos, "--license", "yours").stderr


def test_many_classes_are_told_in_short(photos: Path) -> None:
    """The smallest and the largest; each is in the card."""
    for number in range(30):
        (photos / f"k{number:02}").mkdir()
        shutil.copy(photos / "cats" / "0.png", photos / f"k{number:02}")
    assert "train: 32 classes of 1 (k00) to 4 (cats) images; 0 are empty" in prepare(photos).stderr


def test_classes_of_equal_size(photos: Path) -> None:
    """Are told in fewer words."""
    for number in range(30):
        (photos / f"k{number:02}").mkdir()
        shutil.copy(photos / "cats" / "0.png", photos / f"k{number:02}")
    for name in ("cats", "dogs"):
        shutil.rmtree(photos / name)
    assert "train: 30 classes of 1 image each; 0 are empty" in prepare(photos).stderr


def test_equal_bytes_from_other_places(photos: Path) -> None:
    """Of copies with other times, all but the records is the same; what is over a source is refused, and touches nothing."""
    made = photos.parent / "out"
    prepare(photos)
    copy = photos.parent / "more" / "photos"
    shutil.copytree(photos, copy)
    for path in copy.rglob("*.png"):
        path.touch()
    prepare(copy)
    names = {path.name for path in made.iterdir() if path.is_file()} - {".lock"}
    assert len(names) == 5
    for name in names:
        assert (made / name).read_bytes() == (copy.parent / "out" / name).read_bytes()


def test_shards_over_themselves(photos: Path) -> None:
    """Are refused in every way that leads there: the folder, a tar, a pattern, a link, a folder in it or around it. Nothing is removed."""
    out = photos.parent / "out"
    prepare(photos)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (photos.parent / "link").symlink_to(out)
    for source in (out, out / "train-00000.tar", out / "train-*.tar", photos.parent / "link"):
        result = tiny.call("data", "prepare", "shards", source, out, "--replace")
        assert (result.exit_code, "choose a folder apart from it" in result.stderr) == (2, True), result.stderr
        assert "--replace" not in result.stderr
    assert tiny.call("data", "prepare", "shards", out, out / "new", "--replace").exit_code == 2
    assert tiny.call("data", "prepare", "shards", out / "train-*.tar", photos.parent, "--replace").exit_code == 2
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_other_pictures(photos: Path) -> None:
    """Under the same names are not what was finished."""
    prepare(photos)
    shutil.copy(photos / "cats" / "1.png", photos / "cats" / "0.png")
    result = prepare(photos)
    assert (result.exit_code, "other pictures of the same names" in result.stderr) == (2, True)
    assert prepare(photos, "--replace").exit_code == 0


def test_rejects_as_json(photos: Path) -> None:
    """Counts and causes, also where it ends with an error."""
    (photos / "cats" / "0.png").write_bytes(b"no image")
    result = prepare(photos, "--json")
    assert result.exit_code == 5
    told = json.loads(result.stdout)
    assert (told["dataset"], told["images"], told["rejected"], told["allowed"]) == (None, 8, 1, 0)
    assert list(told["causes"].values()) == [1]


def test_interrupted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how much is done, and what goes on from there."""

    def stop(_pace: object, step: Step) -> None:
        if step.done == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pace, "__call__", stop)
    result = prepare(photos, "--per-shard", "3")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted: 2 of 3 shards are done; the same command goes on from there\n"
    result = prepare(photos, "--per-shard", "3", "--replace")
    assert "the same command without --replace goes on" in result.stderr


def test_too_few_images_for_the_shards(photos: Path) -> None:
    """Is said."""
    assert "train: too few images for --min-shards 9: 8\n" in prepare(photos, "--min-shards", "9").stderr


def test_checked(photos: Path) -> None:
    """What verify advises mends a shard."""
    prepare(photos)
    path = photos.parent / "out" / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[1600] ^= 1
    path.write_bytes(data)
    result = tiny.call("data", "verify", path.parent)
    assert (result.exit_code, "`cdmkit data prepare` as it was called, with --check" in result.stderr) == (5, True)
    assert prepare(photos, "--check").exit_code == 0
    result = tiny.call("data", "verify", path.parent)
    assert (result.exit_code, result.stdout, result.stderr.count("note")) == (0, "8 images in 1 shard: all is well\n", 0)


def test_json(photos: Path) -> None:
    """The card, and where it is."""
    told = json.loads(prepare(photos, "--json").stdout)
    path = told.pop("dataset")
    assert told == json.loads(Path(path).read_text())


def test_every_setting_arrives(photos: Path) -> None:
    """As it is noted in the card, or seen in the shards."""
    options = ("--crop", "area", "--min-side", "3", "--encoding", "jpeg", "--per-shard", "3", "--seed", "5", "--exif", "apply")
    card = json.loads(prepare(photos, *options, "--set", "labels=false", "--json").stdout)
    told = {key: card[key] for key in ("crop", "min_side", "encoding", "seed", "exif", "classes", "source")}
    assert told == {
        "crop": "area",
        "min_side": 3,
        "encoding": "jpeg",
        "seed": 5,
        "exif": "apply",
        "classes": [],
        "source": {"preparer": "folder", "labels": False},
    }
    assert [shard["samples"] for shard in card["splits"]["train"]["shards"]] == [3, 3, 2]
    card = json.loads(prepare(photos, "--min-shards", "4", "--replace", "--json").stdout)
    assert len(card["splits"]["train"]["shards"]) == 4
    assert "too large: 30 x 20 pixels, more than 10 (8)" in prepare(photos, "--max-pixels", "10", "--replace").stderr


def test_settings_and_options_are_the_same() -> None:
    """Each setting has an option, with the same default told."""
    settings = {field.name: field.default for field in Settings.__attrs_attrs__ if option_of(field)}  # type: ignore[attr-defined]
    options = {parameter.name: parameter for parameter in command.params}
    assert settings.keys() < options.keys()
    for name, default in settings.items():
        help = getattr(options[name], "help", "")
        if isinstance(default, int) and default > 1:
            assert f"{default} by default" in help
    assert options["max_reject"].default == MAX_REJECT


def test_dry_run(photos: Path) -> None:
    """Tells what would be, and writes nothing."""
    result = prepare(photos, "--dry-run")
    assert result.exit_code == 0
    assert "train" in result.stdout
    assert "0 of 8" in result.stdout
    assert "2 classes; about" in result.stdout
    told = json.loads(prepare(photos, "--dry-run", "--json").stdout)
    assert told["splits"]["train"].items() >= {"images": 8, "shards": 1, "tried": 8, "rejected": 0}.items()
    assert 8_000 < told["bytes"] < 30_000
    assert told["free"] > 0
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


def test_dry_run_tells_what_will_go_wrong(photos: Path) -> None:
    """Why images are rejected, that they are too many, and what is in the way."""
    (photos / "cats" / "0.png").write_bytes(b"no image")
    (photos.parent / "out").mkdir()
    (photos.parent / "out" / "mine").touch()
    result = prepare(photos, "--dry-run")
    assert result.exit_code == 0
    assert "rejected most often: not a JPEG, PNG, WebP or BMP image: it begins with b'no image' (1)" in result.stdout
    assert "more than --max-reject 0.001 allows" in result.stdout
    assert "out holds mine, which this command did not make" in result.stdout
    told = json.loads(prepare(photos, "--dry-run", "--json").stdout)
    assert (told["rejected_beyond_limit"], sum(told["splits"]["train"]["causes"].values())) == (True, 1)
    assert "holds mine" in told["obstacle"]
    told = json.loads(tiny.call("data", "prepare", "folder", photos, photos, "--dry-run", "--json").stdout)
    assert "is the source itself" in told["obstacle"]
    assert "--resolution S makes squares" in tiny.call("data", "prepare", "folder", photos, photos, "--dry-run").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--crop", "admm"), 2, '--crop: must be one of "adm", "biggan", "area", "lanczos", not the string "admm"; did you mean "adm"?'),
        (("--resolution", "0", "--per-shard", "-1"), 2, "--per-shard: -1 is out of range: it must be >= 1"),
        (("--set", "label=false"), 2, '--set label: unknown key; did you mean "labels"?'),
        (("--set", 'labels="no"'), 2, '--set labels: must be true or false, not the string "no"'),
        (("--set", "labels"), 2, "--set labels: must be NAME=VALUE with a TOML value"),
        (("--set", "labels=maybe"), 2, "a string needs quotes"),
        (("--max-reject", "2"), 2, "'--max-reject'"),
        (("--workers", "-1"), 2, "'--workers'"),
        (("--min-side", "21", "--max-reject", "1"), 5, "none of the 8 images can be used"),
        (("--resolution", "8193"), 2, "--resolution: 8193 is out of range"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], code: int, said: str, photos: Path) -> None:
    """Are told with what would be right."""
    result = prepare(photos, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


def test_mistaken_names(photos: Path) -> None:
    """Of a command, of a preparer, of a source; and options that have no effect."""
    result = tiny.call("data", "prepar")
    assert (result.exit_code, 'no command "prepar"; did you mean "prepare"?' in result.stderr) == (2, True)
    result = tiny.call("data", "prepare", "foldr", photos, photos.parent / "out")
    assert (result.exit_code, 'unknown preparer "foldr"; did you mean "folder"? (known: ' in result.stderr) == (2, True)
    result = tiny.call("data", "prepare", "folder", photos / "none", photos.parent / "out")
    assert (result.exit_code, f"{photos / 'none'} does not exist" in result.stderr) == (5, True)
    result = tiny.call("data", "prepare", "folder", photos, photos.parent / "out", "--crop", "adm")
    assert (result.exit_code, "--crop goes with --resolution" in result.stderr) == (2, True)
    assert not (photos.parent / "out").exists()


def test_help_imports_next_to_nothing() -> None:
    """Also of commands that stand below another one."""
    for arguments in (("data", "--help"), ("data", "prepare", "--help")):
        assert not imported(*arguments) & {"torch", "numpy", "rich", "attrs", "attr", "tomli", "PIL", "cdmkit.plugins", "cdmkit.recipe"}


def test_from_the_shell(photos: Path) -> None:
    """With worker processes, and what Python warns of made an error."""
    line = ["data", "prepare", "folder", str(photos), str(photos.parent / "out"), "--resolution", "8", "--workers", "2"]
    ended = subprocess.run([sys.executable, "-W", "error", "-m", "cdmkit", *line], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"{photos.parent}/out/dataset.json\n")
    assert any(line.startswith("train: 8/8  ") for line in ended.stderr.splitlines())
