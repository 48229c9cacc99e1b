"""What a run writes down of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pluggy
import pytest

from cdmkit import hookspecs
from cdmkit.events import CheckpointSaved, Event, SamplingProgress, Warned
from cdmkit.hookspecs import hook_name
from cdmkit.log import EventLog, Lines, MetricsLog, open_log, read_metrics
from cdmkit.redact import redact
from tests.progress import progress
from tests.training.test_checkpoint import full_disk


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def announce(observer: object, *events: Event) -> None:
    """Send events through the hooks, as a run does."""
    manager = pluggy.PluginManager("cdmkit")
    manager.add_hookspecs(hookspecs)
    manager.register(observer)
    manager.check_pending()
    for event in events:
        getattr(manager.hook, hook_name(type(event)))(event=event)


def test_every_event_is_logged(tmp_path: Path) -> None:
    """The event log implements the hook of every event class there is, but that of sampling's many."""
    observer = EventLog(tmp_path / "events.jsonl")
    logged = {event for event in Event.__subclasses__() if hasattr(observer, hook_name(event))}
    assert logged == set(Event.__subclasses__()) - {SamplingProgress}
    assert all(hasattr(getattr(observer, hook_name(event)), "cdmkit_impl") for event in logged)


def test_events_are_json_lines(tmp_path: Path) -> None:
    """Each line has time, level and the event's name and fields; paths are strings."""
    path = tmp_path / "events.jsonl"
    announce(EventLog(path), CheckpointSaved(stage="base", step=3, path=tmp_path), Warned(message="odd"))
    saved, warned = entries(path)
    assert (saved["event"], saved["level"], saved["stage"], saved["step"], saved["path"]) == (
        "checkpoint_saved",
        "info",
        "base",
        3,
        str(tmp_path),
    )
    assert saved["timestamp"].endswith("Z")
    assert (warned["event"], warned["level"], warned["message"]) == ("warned", "warning", "odd")


def test_metrics_are_the_progress_events(tmp_path: Path) -> None:
    """Progress, and nothing else, goes to the metrics; NaN, which JSON has not, is null."""
    path = tmp_path / "metrics.jsonl"
    announce(MetricsLog(path), progress(1), Warned(message="odd"), progress(2, loss=float("nan"), levels=(float("nan"), 0.25)))
    first, second = read_metrics(path)
    assert first == {**attrs.asdict(progress(1)), "levels": [0.5, 0.25]}
    assert second["loss"] is None


def test_half_a_line_is_tolerated_and_cut_on_resume(tmp_path: Path) -> None:
    """The reader passes over what a crash left of a line; the next writer cuts it off."""
    path = tmp_path / "metrics.jsonl"
    announce(MetricsLog(path), progress(1))
    with path.open("a") as file:
        file.write('{"stage": "ba')
    assert [line["step"] for line in read_metrics(path)] == [1]
    announce(MetricsLog(path), progress(2))
    assert [line["step"] for line in entries(path)] == [1, 2]


def test_steps_trained_again_count_once(tmp_path: Path) -> None:
    """After a resume from an earlier step the later line counts; stages do not mix. No file is no metrics."""
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    announce(MetricsLog(path), progress(1), progress(2, loss=0.9), progress(2, loss=0.4), progress(2, stage="sr"))
    assert [(line["stage"], line["step"], line["loss"]) for line in read_metrics(path)] == [
        ("base", 1, 0.5),
        ("base", 2, 0.4),
        ("sr", 2, 0.5),
    ]


def test_full_disk_costs_lines_but_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that cannot be written are lost whole, with one warning; what is written later is readable."""
    lines = Lines(tmp_path / "log")
    lines.write("first\n")
    with full_disk():
        lines.write("x" * 200 + "\n")
        lines.write("y" * 200 + "\n")
    lines.write("last\n")
    assert (tmp_path / "log").read_text() == "first\nlast\n"
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_deleted_folder_costs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log whose folder is gone is given up with a warning."""
    Lines(tmp_path / "gone" / "log").write("line\n")
    assert "cannot be written" in capsys.readouterr().err


def test_a_log_that_cannot_even_be_cut_costs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a disk that became read-only."""
    lines = Lines(tmp_path / "log")
    (tmp_path / "log").mkdir()
    lines.write("line\n")
    assert "cannot be written" in capsys.readouterr().err


def test_tracebacks_are_logged(tmp_path: Path) -> None:
    """A plugin's traceback can be kept for its author."""
    log = open_log(tmp_path / "events.jsonl")
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("plugin_failed", plugin="x")
    (entry,) = entries(tmp_path / "events.jsonl")
    assert entry["level"] == "error"
    assert "KeyError: 'missing'" in entry["exception"]


SIGNED = "https://store/a.tar?X-Amz-Credential=AKIA&X-Amz-Signature=abc123&part=2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://user:secret@host/a.tar", "s3://***@host/a.tar"),
        (SIGNED, "https://store/a.tar?X-Amz-Credential=***&X-Amz-Signature=***&part=2"),
        ("https://store/a?sig=abc#top", "https://store/a?sig=***#top"),
        ("run --token abc --steps 3", "run --token *** --steps 3"),
        ("mail me@host about keys=3 and a key", "mail me@host about keys=3 and a key"),
        ("{'sort-key': 1} monkey=2 https://host/a?page=3", "{'sort-key': 1} monkey=2 https://host/a?page=3"),
    ],
)
def test_secrets_are_hidden(text: str, expected: str) -> None:
    """Users and passwords of URLs, signatures and tokens are hidden; all else is left as it is."""
    assert redact(text) == expected


def test_secrets_do_not_reach_the_log(tmp_path: Path) -> None:
    """An event that tells of a signed URL is logged without the signature, as valid JSON."""
    path = tmp_path / "events.jsonl"
    announce(EventLog(path), Warned(message=f'cannot read "{SIGNED}"'))
    (entry,) = entries(path)
    assert "abc123" not in entry["message"]
    assert "part=2" in entry["message"]
