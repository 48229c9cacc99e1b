"""Run folders and their lock."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdmkit.errors import SetupError, UsageError
from cdmkit.runs import Run, latest_run, list_runs

RECIPE = ("# mine\nname = 'toy'\n", 'name = "toy"\nseed = 0\n')


def make_run(root: Path, name: str = "toy", outcome: str | None = None, folder: Path | None = None) -> Run:
    """A run that is over."""
    run = Run.create(root, name, folder, recipe=RECIPE, facts={"seed": 0})
    if outcome:
        run.note(outcome=outcome)
    return run


HOLD = """
import sys
from pathlib import Path
from cdmkit.runs import Run
with Run(Path(sys.argv[1])).lock():
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(run: Run) -> Iterator[int]:
    """Another process holds the run; gives its pid. It is killed, so that it cannot clean up."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def note_holder(run: Run, host: str) -> None:
    holder = {"host": host, "pid": 42, "started": "2026-01-02T03:04:05+00:00"}
    (run.path / "holder.json").write_text(json.dumps(holder))


def test_new_run_writes_down_what_it_is(tmp_path: Path) -> None:
    """The folder is named by recipe and UTC time; run.json has versions, command, host, seed and start."""
    about = {"seed": 7, "versions": {"cdmkit-x": "1.2"}}
    run = Run.create(tmp_path, "toy", recipe=RECIPE, facts=about, command=["cdmkit", "run", "a b.toml"])
    facts = json.loads((run.path / "run.json").read_text())
    assert run.path.parent == tmp_path / "toy"
    assert re.fullmatch(r"\d{8}-\d{6}", run.path.name)
    assert (facts["seed"], facts["name"], facts["host"]) == (7, "toy", socket.gethostname())
    assert facts["command"] == "cdmkit run 'a b.toml'"
    assert facts["versions"].keys() >= {"python", "cdmkit", "torch", "cdmkit-x"}
    assert facts["started"].endswith("+00:00")


def test_secrets_are_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor signed URLs of the command line reach run.json."""
    monkeypatch.setenv("STORE_PASSWORD", "hunter2")
    command = ["cdmkit", "run", "x.toml", "--set", "data.source.shards=https://me:hunter2@host/a.tar?X-Amz-Signature=hunter2&part=1"]
    run = Run.create(tmp_path, "toy", recipe=RECIPE, facts={}, command=command)
    text = (run.path / "run.json").read_text()
    assert "hunter2" not in text
    assert "part=1" in text


def test_runs_of_one_second_get_names_of_their_own(tmp_path: Path) -> None:
    """A taken name gets a suffix; the newest run is the one that was made last."""
    runs = [make_run(tmp_path) for _ in range(12)]
    assert len({run.path for run in runs}) == 12
    assert latest_run(tmp_path, "toy") == runs[-1]


def test_runs_are_listed_by_age(tmp_path: Path) -> None:
    """Listing gives the runs of all recipes or of one, and skips folders that are no runs."""
    one, two, other = make_run(tmp_path), make_run(tmp_path), make_run(tmp_path, "other")
    (tmp_path / "toy" / "notes").mkdir()
    assert list_runs(tmp_path, "toy") == [one, two]
    assert set(list_runs(tmp_path)) == {one, two, other}
    assert list_runs(tmp_path / "nowhere") == []
    assert latest_run(tmp_path, "missing") is None


def test_unwritable_place_is_said(tmp_path: Path) -> None:
    """Where no folder can be made, creating is a SetupError that names the place."""
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="file") as caught:
        make_run(tmp_path / "file")
    assert caught.value.exit_code == 4


def test_given_folder_is_used_once(tmp_path: Path) -> None:
    """A folder of the user's choice becomes the run, and refuses to become a second one."""
    folder = tmp_path / "mein Lauf"
    assert make_run(tmp_path, folder=folder).path == folder
    with pytest.raises(SetupError, match="holds a run already"):
        make_run(tmp_path, folder=folder)


def test_resume_opens_the_newest_or_the_given(tmp_path: Path) -> None:
    """Resuming takes the newest run of the recipe, or the folder given."""
    first, second = make_run(tmp_path), make_run(tmp_path)
    assert Run.existing(tmp_path, "toy") == second
    assert second.facts["seed"] == 0
    assert Run.existing(tmp_path, "toy", first.path) == first


def test_a_start_finds_the_run_that_it_made(tmp_path: Path) -> None:
    """Processes that a launcher starts again after a fault find the run by the launch's name, or none where it was not made yet."""
    ours = Run.create(tmp_path, "toy", recipe=RECIPE, facts={"launch": "a7"})
    newer = Run.create(tmp_path, "toy", recipe=RECIPE, facts={"launch": ""})
    assert Run.launched(tmp_path, "toy", None, "a7") == ours
    assert Run.launched(tmp_path, "toy", ours.path, "a7") == ours
    assert Run.launched(tmp_path, "toy", newer.path, "a7") is None
    assert Run.launched(tmp_path, "toy", None, "b8") is None


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    """No run of that name, or a folder that holds none, is a UsageError."""
    with pytest.raises(UsageError, match="no run of 'toy'"):
        Run.existing(tmp_path, "toy")
    with pytest.raises(UsageError, match="holds no run"):
        Run.existing(tmp_path, "toy", tmp_path)


def test_recipe_is_kept(tmp_path: Path) -> None:
    """The recipe is kept as given, and the resolved one comes back as tables."""
    run = make_run(tmp_path)
    assert (run.path / "recipe.toml").read_text() == "# mine\nname = 'toy'\n"
    assert run.resolved_recipe() == {"name": "toy", "seed": 0}
    (run.path / "recipe.resolved.toml").unlink()
    with pytest.raises(SetupError, match=r"recipe\.resolved\.toml cannot be read"):
        run.resolved_recipe()


def test_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    """A run in use is a SetupError with host, pid and start of the holder; it counts as running. Its death frees the lock."""
    run = make_run(tmp_path, outcome="stopped")
    with held_by_another_process(run) as pid:
        assert run.state == "running"
        with pytest.raises(SetupError, match=rf"process {pid} on {socket.gethostname()} since \d{{4}}-") as caught, run.lock():
            pass
        assert caught.value.exit_code == 4
    assert (run.path / "holder.json").exists()
    with run.lock():
        assert json.loads((run.path / "holder.json").read_text())["pid"] == os.getpid()
    assert not (run.path / "holder.json").exists()


def test_lock_is_released_after_a_failure(tmp_path: Path) -> None:
    """An error inside leaves no holder behind."""
    run = make_run(tmp_path)
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        assert run.state == "running"


def test_holder_on_another_host_needs_force(tmp_path: Path) -> None:
    """A holder noted on another machine is believed unless force is set, and named."""
    run = make_run(tmp_path)
    note_holder(run, "elsewhere")
    assert run.state == "running"
    with pytest.raises(SetupError, match=r"process 42 on elsewhere since 2026-01-02T03:04:05.*--force"), run.lock():
        pass
    assert (run.path / "holder.json").exists()
    with run.lock(force=True):
        pass
    assert run.state == "interrupted"


def test_dead_holder_on_this_host_is_taken_over(tmp_path: Path) -> None:
    """What a killed process noted on this machine holds nobody up."""
    run = make_run(tmp_path)
    note_holder(run, socket.gethostname())
    assert run.state == "interrupted"
    with run.lock():
        assert run.state == "running"


def test_stages_are_held_one_by_one(tmp_path: Path) -> None:
    """Who trains one stage holds that stage alone: others may work on another, nobody on the same one or on the whole run."""
    run = make_run(tmp_path)
    with run.lock("base"):
        assert run.state == "running"
        with run.lock("sr64"):
            pass
        with pytest.raises(SetupError, match=rf"base is in use by process {os.getpid()}"), run.lock("base"):
            pass
        with pytest.raises(SetupError, match=rf"base is in use by process {os.getpid()}"), run.lock():
            pass
    assert run.state == "in parts"
    with run.lock():
        assert run.state == "running"


def test_those_who_begin_on_stages_change_the_run_one_after_another(tmp_path: Path) -> None:
    """Each finds what the one before has noted; nothing is lost."""
    run = make_run(tmp_path)

    def note(stage: str) -> None:
        before = run.facts.get("begun", [])
        time.sleep(0.01)
        run.note(begun=[*before, stage])

    def begin(stage: str) -> None:
        with run.lock(stage, begin=lambda: note(stage)):
            pass

    stages = ["base", "fine", "finer", "finest"]
    with ThreadPoolExecutor(len(stages)) as threads:
        list(threads.map(begin, stages))
    assert sorted(run.facts["begun"]) == stages


@pytest.mark.parametrize("outcome", ["finished", "stopped", "failed"])
def test_state_is_the_noted_outcome(tmp_path: Path, outcome: str) -> None:
    """A run that noted its end is in that state; one that could not is interrupted."""
    assert make_run(tmp_path, outcome=outcome).state == outcome
    assert make_run(tmp_path).state == "interrupted"


def test_steps_are_those_of_the_newest_checkpoints(tmp_path: Path) -> None:
    """Each stage counts the steps of its newest checkpoint, 0 without one. Other folders, and unfinished ones, do not count."""
    run = make_run(tmp_path)
    for step in ("00000900", "00001000", "old"):
        (run.stage("base") / "ckpt" / f"step-{step}").mkdir(parents=True)
        (run.stage("base") / "ckpt" / f"step-{step}" / "state.json").touch()
    (run.stage("base") / "ckpt" / "step-00001100").mkdir()
    run.stage("sr64")
    assert run.steps() == {"base": 1000, "sr64": 0}


def test_claim_keeps_what_fits_and_removes_what_does_not(tmp_path: Path) -> None:
    """A stage keeps its checkpoints and snapshots while its fingerprint stays, and loses them where it is to be trained as another."""
    run = make_run(tmp_path)
    run.claim_stage("base", "one")
    made = [run.stage("base") / kind / "step-00000001" for kind in ("ckpt", "averages")]
    for folder in made:
        folder.mkdir(parents=True)
    (run.stage("base") / "done").touch()
    run.claim_stage("base", "one")
    assert all(folder.exists() for folder in made)
    run.claim_stage("base", "two")
    assert not any(folder.exists() for folder in made)
    assert not (run.stage("base") / "done").exists()


def test_a_run_does_not_go_among_other_files(tmp_path: Path) -> None:
    """A folder with files of its own is refused, and left as it is."""
    (tmp_path / "recipe.toml").write_text("mine")
    with pytest.raises(SetupError, match="holds files"):
        make_run(tmp_path, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
