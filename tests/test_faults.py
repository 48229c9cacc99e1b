"""What breaks a run, through the real command line: signals, kills, folders, other processes, changed recipes, missing data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distribution import write_distribution

RECIPES = Path(__file__).parent.parent / "recipes"
LONG = tiny.RECIPE.replace("steps = 4\n", "steps = 40\n").replace("every = 2", "every = 10")


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of `cdmkit`; killed on leaving, if it still runs."""
    with tiny.start(*arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(there: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def saved(folder: Path, stage: str, step: int) -> bool:
    return (folder / "stages" / stage / "ckpt" / f"step-{step:08d}").is_dir()


def command(*arguments: object) -> tuple[int, str, str]:
    """`cdmkit ...` as a process, to its end."""
    return tiny.finish(tiny.start(*arguments))


def test_a_run_stopped_and_killed_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """The first signal saves and exits with 75, saying how to go on; SIGKILL leaves nothing that hinders. Nothing of it can be seen in
    the weights and the samples at the end.
    """
    recipe, folder, whole = tiny.write(tmp_path, LONG), tmp_path / "run", tmp_path / "whole"
    assert command("run", recipe, "--run", whole)[0] == 0
    ends = [(signal.SIGINT, "base", 10), (signal.SIGKILL, "fine", 20)]
    for number, stage, step in ends:
        with running("run", recipe, "--run", folder, *(["--resume"] if folder.exists() else [])) as process:
            wait_until(partial(saved, folder, stage, step))
            process.send_signal(number)
            code, out, err = tiny.finish(process)
        killed = number == signal.SIGKILL
        assert (code, out) == (-signal.SIGKILL if killed else 75, ""), err
        assert (folder / "holder.json").exists() == killed
        if not killed:
            told = err.splitlines()[-1]
            assert told.startswith(f"stopped by {signal.Signals(number).name} at step ")
            assert f"of stage '{stage}'; all is saved. Go on with the same command and --resume" in told
            assert json.loads((folder / "run.json").read_text())["outcome"] == "stopped"
    code, out, err = command("run", recipe, "--run", folder, "--resume")
    assert (code, out) == (0, f"{folder}/samples/fine.png\n"), err
    assert "base: trained already, unchanged" in err
    assert ", from step" in err
    for stage in ("base", "fine"):
        assert tiny.weights(folder, stage) == tiny.weights(whole, stage)
    assert (folder / "samples" / "fine-00000.tar").read_bytes() == (whole / "samples" / "fine-00000.tar").read_bytes()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_signal_while_sampling_stops_too(tmp_path: Path) -> None:
    """Exit code 75, no half of a shard; what is trained is kept."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "run"
    with running("run", recipe, "--run", folder, "--set", "sample.count=100000") as process:
        wait_until(lambda: (folder / "samples" / ".fine-00000.tar.partial").exists())
        process.terminate()
        code, out, err = tiny.finish(process)
    assert (code, out) == (75, ""), err
    assert "stopped by SIGTERM while stage" in err
    assert list((folder / "samples").iterdir()) == []
    result = tiny.call("run", recipe, "--run", folder, "--resume")
    assert (result.exit_code, result.stderr.count("trained already, unchanged")) == (0, 2)


@pytest.mark.parametrize("place", ["--runs", "--run"])
@pytest.mark.parametrize("below", ["file/runs", "/proc/runs"])
def test_a_place_that_cannot_be_written_is_said_before_training(tmp_path: Path, place: str, below: str) -> None:
    """Exit code 4, naming the place."""
    (tmp_path / "file").touch()
    result = tiny.call("run", tiny.write(tmp_path), place, tmp_path / below)
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith(f"cannot make a run in {tmp_path / below}")
    assert "Choose a place that can be written to." in result.stderr


def test_a_run_deleted_while_it_trains_is_said_at_the_next_save(tmp_path: Path) -> None:
    """Exit code 7; it is not made again."""
    folder = tmp_path / "run"
    with running("run", tiny.write(tmp_path), "--run", folder, "--set", "stage.base.train.steps=100000") as process:
        wait_until(lambda: saved(folder, "base", 4))
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        code, out, err = tiny.finish(process)
    assert (code, out) == (7, ""), err
    assert "is gone" in err
    assert "Traceback" not in err
    assert not folder.exists()


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    """The second exits with 4 and names the first one's host, process and start; a killed one holds nobody up."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "runs" / "tiny" / "one"
    with running("run", recipe, "--run", folder, "--set", "stage.base.train.steps=100000") as process:
        wait_until(lambda: saved(folder, "base", 2))
        result = tiny.call("run", recipe, "--run", folder, "--resume", "--force")
        assert (result.exit_code, result.stdout) == (4, "")
        assert f"is in use by process {process.pid} on {socket.gethostname()} since 20" in result.stderr
        assert json.loads(tiny.call("runs", "--runs", tmp_path / "runs", "--json").stdout)[0]["state"] == "running"
    again = tiny.call("run", recipe, "--run", folder, "--resume")
    assert again.exit_code == 0, again.stderr


def test_a_holder_on_another_host_is_believed_unless_forced(tmp_path: Path, trained: Path) -> None:
    """Its lock may not reach here."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "run"
    shutil.copytree(trained, folder)
    holder = {"host": "elsewhere", "pid": 42, "started": "2026-01-02T03:04:05+00:00"}
    (folder / "holder.json").write_text(json.dumps(holder))
    result = tiny.call("run", recipe, "--run", folder, "--resume")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "process 42 on elsewhere since 2026-01-02T03:04:05+00:00" in result.stderr
    assert "--force" in result.stderr
    assert tiny.call("run", recipe, "--run", folder, "--resume", "--force").exit_code == 0


def test_paths_may_be_of_any_kind(tmp_path: Path) -> None:
    """Blanks, letters beyond ASCII, what wildcards are made of, and folders deep below each other: for recipe, data and run."""
    folder = tmp_path / "Bilder für alle [1] #2 – 画像" / "/".join(["x" * 200] * 12)
    folder.mkdir(parents=True)
    shards = tiny.run(tiny.write(folder, name="mein Rezept.toml")) / "samples" / "fine-*.tar"
    source = f'type = "webdataset", shards = "{shards}"'
    recipe = tiny.write(folder, tiny.RECIPE.replace('type = "shapes", resolution = 8, count = 32', source))
    code, out, err = command("run", recipe, "--run", folder / "ein Lauf")
    assert (code, out) == (0, f"{folder / 'ein Lauf' / 'samples' / 'fine.png'}\n"), err
    assert tiny.call("sample", folder / "ein Lauf", "--count", 2, "--out", folder / "ö").exit_code == 0


@pytest.mark.parametrize("name", ["imagenet64", "imagenet128", "imagenet256"])
def test_missing_data_is_said_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Exit code 5, with the pattern and how to mend it; no run folder is left behind."""
    monkeypatch.setenv("CDMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    result = tiny.call("run", RECIPES / f"{name}.toml")
    assert (result.exit_code, result.stdout) == (5, "")
    assert f"{tmp_path}/data/{name}/train-*.tar" in result.stderr
    assert "CDMKIT_DATA" in result.stderr
    assert "data.source.shards" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said_before_a_run_is_made(tmp_path: Path) -> None:
    """Exit code 4, with those that are."""
    result = tiny.call("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", "--set", 'stage.fine.backend.device="cuda"')
    assert (result.exit_code, result.stdout) == (4, "")
    assert 'device = "cuda"' in result.stderr
    assert "cpu" in result.stderr
    assert not (tmp_path / "runs").exists()


FAULTS = {
    "a backbone that does not fit the resolution": (
        3,
        ("multipliers = [1]", "multipliers = [1, 1, 1, 1]"),
        "bad.toml:14:1: defaults.stage.backbone: 4 multipliers halve the resolution 3 times, but 4 is not a multiple of 8",
    ),
    "1 an unknown key": (
        3,
        ("resolution = 4", "resolutoin = 4"),
        'bad.toml:18:1: stage.base.resolutoin: unknown key; did you mean "resolution"?',
    ),
    "2 a wrong type": (3, ("timesteps = 20", "timesteps = 1.5"), "bad.toml:10:31: defaults.stage.schedule.timesteps: must be an integer"),
    "2 out of range": (3, ("batch = 5", "batch = 0"), "bad.toml:8:1: sample.batch: 0 is out of range: it must be >= 1"),
    "3 not TOML": (3, ("[data]", "[data"), "bad.toml:3:6: this is not valid TOML"),
    "3 a byte order mark": (3, ("schema = 1", "\ufeffschema = 1"), "bad.toml:1:1: starts with a byte order mark"),
    "4 a stage after itself": (
        3,
        ('after = "base"', 'after = "fine"'),
        "bad.toml:20:1: stage.fine.after: stages follow each other in a circle: fine -> fine",
    ),
    "5 no multiple of the parent": (
        3,
        ("\nresolution = 8", "\nresolution = 6"),
        'bad.toml:21:1: stage.fine.resolution: 6 is not 2, 3, 4, ... times 4, the resolution of its parent "base"',
    ),
    "6 no such stage": (
        3,
        ('after = "base"', 'after = "bass"'),
        'bad.toml:20:1: stage.fine.after: there is no stage "bass"; did you mean "base"?',
    ),
    "6 a stage given twice": (3, ("[stage.fine]", "[stage.base]"), "bad.toml:19:12: this is not valid TOML: cannot declare"),
    "7 not installed": (4, ('"ddim"', '"leapfrog"'), 'sampler.type: no installed plugin offers sampler "leapfrog"'),
    "11 an import path": (3, ('"ddim"', '"os.system"'), "recipes cannot import code"),
    "11 a target": (3, ('type = "ddim"', '_target_ = "os.system"'), "recipes cannot import code"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_recipes_are_told_with_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """By `validate` as by `run`, with the same exit code and words."""
    code, (old, new), words = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    assert old in tiny.RECIPE
    tiny.write(Path(), tiny.RECIPE.replace(old, new, 1), "bad.toml")
    for arguments in (["validate", "bad.toml"], ["run", "bad.toml", "--runs", "runs"]):
        result = tiny.call(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr
    assert os.listdir() == ["bad.toml"]


OFFER = """
from cdmkit.hookspecs import hookimpl
from cdmkit.component import component, option
from cdmkit.kinds import Sampler

@component("leapfrog")
class Leapfrog(Sampler):
    "Jumps."
    steps: int = option(2, help="calls")
    def chain(self, process, stop_at=0): return process.respace(self.steps, stop_at)
    def __call__(self, denoise, noise, process, draw, stop_at=0): return noise

@hookimpl
def cdmkit_components(): return [Leapfrog]
"""
PLUGINS = {
    "a working one": ({"works": OFFER}, 0, ""),
    "8 broken at import": ({"broken": "raise RuntimeError('no driver')"}, 4, "it may be of a broken one"),
    "9 two of one name": ({"first": OFFER, "second": OFFER}, 4, 'sampler "leapfrog" is offered by first 1.0'),
    "10 another API": ({"newer": f"cdmkit_api = 99\n{OFFER}"}, 4, "it is made for plugin API 99, but this is cdmkit"),
}


@pytest.mark.parametrize("case", PLUGINS)
def test_faults_of_plugins_matter_to_recipes_that_need_them_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Exit code 4 and whose fault it is; any other recipe validates."""
    plugins, code, words = PLUGINS[case]
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in plugins.items():
        write_distribution(tmp_path, name, text)
    needs = tiny.call("validate", tiny.write(tmp_path, tiny.RECIPE.replace('"ddim"', '"leapfrog"'), "needs.toml"))
    assert needs.exit_code == code, needs.stderr
    assert words in needs.stderr
    other = tiny.call("validate", tiny.write(tmp_path))
    assert other.exit_code == 0
    assert ("warning" in other.stderr) == (case[:2] in ("8 ", "10"))
