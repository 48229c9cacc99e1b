"""Saving beside training: what is written, when, and what becomes of failures."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cdmkit.errors import CheckpointError, DataError, Stopped
from cdmkit.events import CheckpointSaved, Event, Progress, Warned
from cdmkit.training import StopRequest, saving
from cdmkit.training.checkpoint import load
from cdmkit.training.learner import Learner
from cdmkit.training.saving import Saver
from cdmkit.training.tensor_file import TensorFile
from tests.training.components import CLASSES, contents, make_stage, run
from tests.training.test_checkpoint import full_disk

Before = Callable[[], object]


@contextmanager
def slow_disk(before: Before) -> Iterator[None]:
    """`before` is called before anything is put on the disk."""
    fsync = os.fsync

    def slow(handle: int) -> None:
        before()
        fsync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        yield


def saves(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, CheckpointSaved)]


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """Steps are done before the disk is; what is saved is nonetheless the state of the step at which saving began."""
    gate = threading.Event()
    told: list[Event] = []

    def note(event: Event) -> None:
        told.append(event)
        if isinstance(event, Progress) and event.step == 5:
            gate.set()

    with slow_disk(lambda: gate.wait(60)):
        run(make_stage({"log_every": 1}), tmp_path / "one", emit=note)
    order = [(type(event), event.step) for event in told if isinstance(event, (CheckpointSaved, Progress))]
    assert order.index((CheckpointSaved, 3)) > order.index((Progress, 5))
    assert saves(told) == [3, 6]
    path, _ = run(make_stage({"steps": 3}), tmp_path / "other")
    assert contents(tmp_path / "one" / "ckpt" / path.name) == contents(path)


def test_events_come_from_the_thread_that_trains(tmp_path: Path) -> None:
    """All of them, in the order of the steps; and no thread is left."""
    threads: set[threading.Thread] = set()
    _, events = run(make_stage({"checkpoint_every": 1}), tmp_path, emit=lambda event: threads.add(threading.current_thread()))
    assert threads == {threading.current_thread()}
    assert saves(events) == [1, 2, 3, 4, 5, 6]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("cdmkit-saver")]


def test_one_save_at_a_time_and_the_wait_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is slower than training every checkpoint is written, one after another."""
    monkeypatch.setattr(saving, "LONG_WAIT", 0.01)
    writers: list[str] = []

    def wait() -> None:
        writers.append(threading.current_thread().name)
        time.sleep(0.02)

    with slow_disk(wait):
        _, events = run(make_stage({"checkpoint_every": 1}), tmp_path)
    assert saves(events) == [1, 2, 3, 4, 5, 6]
    assert len(set(writers)) == 1
    (warning,) = warnings(events)
    assert "saving takes longer than checkpoint_every = 1 steps: training waited" in warning


def test_a_stop_at_the_step_of_a_save_waits_for_it(tmp_path: Path) -> None:
    """It saves no second time; the checkpoint stands when training has stopped."""
    stop, told = StopRequest(), list[Event]()
    with slow_disk(lambda: time.sleep(0.02)), pytest.raises(Stopped):
        run(make_stage({"sample_every": 3}), tmp_path, emit=told.append, stop=stop, sample=lambda *_: stop.request())
    assert saves(told) == [3]
    assert load(tmp_path / "ckpt" / "step-00000003").step == 3


def test_a_stop_after_that_saves_what_came_since(tmp_path: Path) -> None:
    """The save under way ends, then the last step is saved."""
    stop, told = StopRequest(), list[Event]()

    def note(event: Event) -> None:
        told.append(event)
        if isinstance(event, Progress) and event.step == 4:
            stop.request()

    with slow_disk(lambda: time.sleep(0.02)), pytest.raises(Stopped, match="at step 4 of 6"):
        run(make_stage({"log_every": 1}), tmp_path, emit=note, stop=stop)
    assert saves(told) == [3, 4]


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    """Someone removed it."""
    shutil.rmtree(folder)
    yield


def make_saver(folder: Path, events: list[Event], rank: int = 0) -> Saver:
    """Of a learner at step 0, which has learned nothing."""
    folder.mkdir()
    stage = make_stage()
    session = stage.backend.start()
    session.rank = rank
    return Saver(folder, Learner(stage, classes=CLASSES, seed=0, session=session), {}, events.append, None)


def test_a_stop_tries_again_what_could_not_be_saved(tmp_path: Path) -> None:
    """Room that was made in the meantime is used, and what is written is the same."""
    events, others = list[Event](), list[Event]()
    with make_saver(tmp_path / "one", events) as saver, make_saver(tmp_path / "other", others) as other:
        with full_disk():
            saver.save()
            assert saver.last == "there is no checkpoint yet"  # waits for the attempt
        for each in (saver, other):
            each.save(last_chance=True)
    assert [type(event) for event in events] == [Warned, CheckpointSaved]
    assert [type(event) for event in others] == [CheckpointSaved]
    assert contents(tmp_path / "one" / "step-00000000") == contents(tmp_path / "other" / "step-00000000")


def save_and_leave(folder: Path, events: list[Event], disk: AbstractContextManager[None], error: Exception | None = None) -> None:
    """Leave training, by an error if there is one, with a save under way that meets the state of the disk."""
    with make_saver(folder, events) as saver, disk:
        saver.save()
        _ = saver.last  # waits for the attempt
        if error:
            raise error


def test_a_failure_on_leaving_is_raised(tmp_path: Path) -> None:
    """Where nothing else ends training, the folder that is gone does."""
    with pytest.raises(CheckpointError, match="is gone"):
        save_and_leave(tmp_path / "ckpt", [], gone(tmp_path / "ckpt"))


@pytest.mark.parametrize(("spoilt", "cause"), [(full_disk, "could not be saved"), (gone, "is gone")])
def test_an_error_is_not_hidden_by_a_failed_save(
    tmp_path: Path, spoilt: Callable[[Path], AbstractContextManager[None]], cause: str
) -> None:
    """The failed save is a warning beside it, whatever its cause."""
    events: list[Event] = []
    with pytest.raises(DataError, match="no more images"):
        save_and_leave(tmp_path / "ckpt", events, spoilt(tmp_path / "ckpt"), DataError("no more images"))
    assert [cause in message for message in warnings(events)] == [True]


def save_slowly_and_leave(folder: Path, events: list[Event]) -> None:
    with slow_disk(lambda: time.sleep(0.02)), make_saver(folder, events) as saver:
        saver.save()
        raise DataError("no more images")


def test_an_error_waits_for_the_save_under_way(tmp_path: Path) -> None:
    """The checkpoint stands and is told of when the error comes out."""
    events: list[Event] = []
    with pytest.raises(DataError, match="no more images"):
        save_slowly_and_leave(tmp_path / "ckpt", events)
    assert saves(events) == [0]
    assert load(tmp_path / "ckpt" / "step-00000000").step == 0


def test_the_loss_between_two_checkpoints_is_noted(tmp_path: Path) -> None:
    """The mean of the steps since the last multiple of `checkpoint_every`, which a stop in between does not change; none at the stop."""
    whole, events = run(make_stage({"log_every": 1}), tmp_path / "whole")
    losses = [event.loss for event in events if isinstance(event, Progress)]
    for step in (3, 6):
        state = load(whole.with_name(f"step-{step:08d}")).state
        assert state["loss"] == pytest.approx(sum(losses[step - 3 : step]) / 3)
    stopped, _ = run(make_stage({"steps": 5}), tmp_path / "parts")
    assert load(stopped).state["loss"] is None
    path, _ = run(make_stage(), tmp_path / "parts")
    assert contents(path) == contents(whole)


@pytest.mark.parametrize(
    ("options", "kept"), [({}, [6]), ({"keep": 2}, [5, 6]), ({"keep_every": 2}, [2, 4, 6]), ({"keep_best": 6}, [1, 2, 3, 4, 5, 6])]
)
def test_checkpoints_are_kept_as_the_stage_says(tmp_path: Path, options: dict[str, int], kept: list[int]) -> None:
    """The newest, those of every so many steps, the best; the same after a resume."""
    train = {"checkpoint_every": 1, "keep": 1, **options}
    for steps in (4, 6):
        path, _ = run(make_stage({**train, "steps": steps}), tmp_path / "parts")
    assert steps_kept(path.parent) == kept
    whole, _ = run(make_stage(train), tmp_path / "whole")
    assert steps_kept(whole.parent) == kept


def test_the_best_checkpoint_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    """By what the checkpoints note."""
    every, _ = run(make_stage({"checkpoint_every": 1, "keep": 6}), tmp_path / "every")
    losses = {step: load(every.with_name(f"step-{step:08d}")).state["loss"] for step in range(1, 7)}
    best, _ = run(make_stage({"checkpoint_every": 1, "keep": 1, "keep_best": 1}), tmp_path / "best")
    assert steps_kept(best.parent) == sorted({6, min(losses, key=losses.__getitem__)})


def test_other_processes_give_their_parts_and_write_nothing(tmp_path: Path) -> None:
    """Each save asks for the learner's tensors once, so that all take part in gathering them, also where a save is tried again."""
    events: list[Event] = []
    with make_saver(tmp_path / "ckpt", events, rank=1) as saver:
        saver.save()
        saver.save(last_chance=True)
    assert (events, list((tmp_path / "ckpt").iterdir())) == ([], [])


def test_a_resumed_run_lets_go_of_what_it_read(tmp_path: Path) -> None:
    """Files that are held open take room on the disk, also when they are removed."""
    run(make_stage({"steps": 3}), tmp_path)
    held: list[TensorFile] = []

    def look(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            held.extend(each for each in gc.get_objects() if type(each) is TensorFile and each.path.is_relative_to(tmp_path))

    run(make_stage(), tmp_path, emit=look)
    assert held == []
