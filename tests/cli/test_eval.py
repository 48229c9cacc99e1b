"""`cdmkit eval`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages."""
    return tiny.run(tiny.write(tmp_path_factory.mktemp("trained")))


def test_every_stage_is_measured_and_kept_in_the_run(trained: Path) -> None:
    """A line and a table for each on stdout; three files for each in the run."""
    result = tiny.call("eval", trained, "--count", 4)
    assert result.exit_code == 0, result.stderr
    assert "base 4 x 4: " in result.stdout
    assert "fine 8 x 8: " in result.stdout
    assert "bits per dimension, 4 training images, 20 points; prior" in result.stdout
    names = {path.name for path in (trained / "eval").iterdir()}
    assert names == {f"bpd-{stage}.{kind}" for stage in ("base", "fine") for kind in ("json", "csv", "png")}
    told = json.loads((trained / "eval" / "bpd-fine.json").read_text())
    assert (told["s"], told["split"], told["downsample"], told["weights"].endswith("step-00000004/ema.safetensors")) == (
        5,
        "train",
        "area",
        True,
    )


def test_rows_are_at_equal_ratios_of_points(trained: Path, tmp_path: Path) -> None:
    """From the first to the last: most of the sum is at the first ones. The last row has all of it."""
    said = tiny.call("eval", trained, "--stage", "base", "--count", 2, "--out", tmp_path).stdout
    rows = [line.split() for line in said.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5, 7, 10, 14, 20]
    told = json.loads((tmp_path / "bpd-base.json").read_text())
    assert float(rows[-1][2]) == pytest.approx(told["total"] - told["prior"], rel=1e-3)


def test_json_is_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    """Of one stage, along a respaced chain, in nats, into another folder."""
    arguments = ("--stage", "base", "--count", 4, "--steps", 5, "--units", "nats", "--json", "--out", tmp_path)
    told = json.loads(tiny.call("eval", trained, *arguments).stdout)
    (base,) = told
    assert (base["stage"], base["calls"], base["chain"], base["units"], len(base["terms"])) == ("base", 5, 20, "nats per dimension", 5)
    assert json.loads((tmp_path / "bpd-base.json").read_text())["total"] == base["total"]
    text = tiny.call("eval", trained, *arguments[:-3], "--out", tmp_path).stdout
    assert "5 points (of a respaced chain, not of all 20 timesteps)" in text


def test_of_one_image_no_error_is_told(trained: Path, tmp_path: Path) -> None:
    """There is none: the line has no `+-`, the JSON has null."""
    result = tiny.call("eval", trained, "--stage", "base", "--count", 1, "--out", tmp_path)
    assert " bits per dimension, 1 training image, 20 points; prior" in result.stdout
    assert "+-" not in result.stdout
    assert "nan" not in result.stdout
    assert json.loads((tmp_path / "bpd-base.json").read_text())["error"] is None


def test_progress_goes_to_stderr(trained: Path) -> None:
    """Stdout holds the result alone."""
    result = tiny.call("eval", trained, "--count", 2, "--batch", 1, "--json")
    json.loads(result.stdout)
    assert "40/40" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--metrics", "bdp"), 2, 'no metric "bdp"; did you mean "bpd"?'),
        (("--metrics", "bpd,fid"), 2, 'no metric "fid"'),
        (("--stage", "bas"), 2, 'no stage "bas"; did you mean "base"?'),
        (("--count", 33), 2, "the train data has 32 images, not 33"),
        (("--steps", 21), 2, "stage 'base' has fewer than 21 timesteps"),
        (("--count", 0), 2, "0 is not in the range"),
        (("--set", 'stage.base.prediction="v"'), 7, "stage 'base' was trained as another one"),
        (("--out", "/proc/no"), 4, "results cannot be written into /proc/no"),
    ],
)
def test_what_cannot_be_measured_is_explained(trained: Path, arguments: tuple[object, ...], code: int, words: str) -> None:
    """With the exit code of whose fault it is."""
    result = tiny.call("eval", trained, "--count", 2, *arguments)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_a_run_without_weights_cannot_be_measured(trained: Path, tmp_path: Path) -> None:
    """Nor one that is not there."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "recipe.resolved.toml"):
        (run / name).write_bytes((trained / name).read_bytes())
    result = tiny.call("eval", run, "--count", 2)
    assert (result.exit_code, "has no checkpoint" in result.stderr) == (7, True)
    assert tiny.call("eval", "nothing").exit_code == 2
