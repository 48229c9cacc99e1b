"""What people see of a run: bars on a terminal, lines elsewhere, nothing of it on stdout."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from cdmkit import events
from cdmkit.cli import bars
from cdmkit.cli.bars import rate, sparkline
from cdmkit.cli.watching import Watcher
from cdmkit.pipeline import teller
from cdmkit.plugins import load_plugins
from tests.progress import progress

STORY = (
    events.RunStarted(path=Path("runs/x"), name="x", stages=("base", "fine")),
    events.StageStarted(stage="base", step=20, steps=40, parameters=1_234_000),
    *(
        progress(
            n,
            steps=40,
            loss=1 / n,
            levels=(1.0, 10.0, float("nan"), 100.0),
            images_per_second=250.0,
            gflops=1234.0,
            eta=(40 - n) * 400.0,
        )
        for n in (30, 35, 40)
    ),
    events.Warned(message="odd [bold]things[/bold]"),
    events.StageFinished(stage="base", step=40),
    events.StageFinished(stage="fine", step=40, skipped=True),
    *(events.SamplingProgress(stage="base", done=n, total=10) for n in (1, 5, 10)),
    events.SamplesWritten(stage="base", path=Path("runs/x/base.png"), count=3),
    events.RunFinished(path=Path("runs/x"), outcome="finished"),
)


def watch(console: Console) -> str:
    """What a console shows of the story."""
    with Watcher(console) as watcher:
        emit = teller(load_plugins(builtin=(), extra=[watcher]))
        for event in STORY:
            emit(event)
            if console.is_interactive and isinstance(event, events.Progress):
                time.sleep(0.12)  # bars are drawn ten times a second
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """The first and the last of each kind of progress, with the time left; no escape sequences."""
    lines = watch(Console(file=io.StringIO(), highlight=False)).splitlines()
    assert lines == [
        "run runs/x: base, fine",
        "base: training 1.23 M parameters for 40 steps, from step 20",
        "base: 30/40  loss 0.0333  250 images/s  1.23 TFLOP/s  grad 1  1:06:40 left",
        "base: 40/40  loss 0.0250  250 images/s  1.23 TFLOP/s  grad 1  0:00:00 left",
        "warning: odd [bold]things[/bold]",
        "base: trained, 40 steps",
        "fine: trained already, unchanged, 40 steps",
        "base sampling: 10/10  network calls",
    ]
    assert capsys.readouterr().out == ""


def test_lines_come_every_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, where there is no pause to keep."""
    monkeypatch.setattr(bars, "PAUSE", 0.0)
    text = watch(Console(file=io.StringIO(), highlight=False))
    assert [f"base: {n}/40" in text for n in (30, 35, 40)] == [True] * 3
    assert [f"base sampling: {n}/10" in text for n in (1, 5, 10)] == [True] * 3


def terminal(width: int = 120, **environment: str) -> Console:
    """A console that takes itself for a terminal."""
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False, _environ={"TERM": "xterm-256color", **environment}
    )


def test_bars_on_a_terminal() -> None:
    """They move in place and are gone at the end; the lines that matter stay."""
    text = watch(terminal())
    assert "━" in text
    assert "35/40" in text
    assert "loss 0.0286  250 images/s  1.23 TFLOP/s  grad 1  ▁▅ █" in text
    assert "run runs/x: base, fine" in text
    assert "base: 40/40" not in text
    assert "/40" not in text.partition("warning: ")[2], "a bar outlives what it shows"


def test_who_has_nothing_to_show_leaves_the_terminal_alone() -> None:
    """Several processes may share it, of which one speaks: the others would wipe out its bars."""
    console = terminal()
    with Watcher(console):
        time.sleep(0.12)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_a_narrow_terminal_shows_what_matters_most() -> None:
    """Steps, time left, loss."""
    text = watch(terminal(80))
    assert "35/40" in text
    assert "left loss 0.0286" in text
    assert "grad" not in text


def test_no_color_is_obeyed() -> None:
    """Bars without colours."""
    coloured, plain = watch(terminal()), watch(terminal(NO_COLOR="1"))
    assert "\x1b[38;5;" in coloured
    assert "\x1b[38;5;" not in plain
    assert "━" in plain


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    """TERM=dumb, such as in editors."""
    text = watch(terminal(TERM="dumb"))
    assert "base: 40/40  loss 0.0250" in text
    assert "━" not in text


def test_what_is_not_known_is_left_out() -> None:
    """No speed of a network that cannot be traced, no bar of a noise level without images."""
    assert [rate(gflops) for gflops in (float("nan"), 12.345, 999.0, 12_345.0)] == ["", "12.3 GFLOP/s", "999 GFLOP/s", "12.3 TFLOP/s"]
    assert [sparkline(values) for values in ((), (float("nan"),) * 2, (2.0, 2.0), (0.0, 1.0, 2.0))] == ["", "  ", "▁▁", " ▁█"]


def test_the_terminal_is_left_in_order_after_an_error() -> None:
    """The cursor is shown again."""
    console = terminal()
    watcher = Watcher(console)

    def fail() -> None:
        watcher.advance("base", 1, 2)
        raise KeyError

    with pytest.raises(KeyError), watcher:
        fail()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rpartition("\x1b[?25")[2].startswith("h")
