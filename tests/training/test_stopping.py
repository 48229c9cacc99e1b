"""Signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from cdmkit.training.stopping import SIGNALS, StopRequest, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_asks_to_stop(number: signal.Signals) -> None:
    """The first signal sets the request, with its name as the reason, and work goes on."""
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.reason == number.name


def test_handlers_are_put_back() -> None:
    """Leaving the block restores whatever handled the signals before, also after an exception."""
    before = [signal.getsignal(number) for number in SIGNALS]

    def work() -> None:
        with stop_on_signals():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_second_signal_ends_the_process_at_once() -> None:
    """The second signal exits with 130, whatever would catch an exception."""
    code = """
import os, signal
from cdmkit.training.stopping import stop_on_signals
with stop_on_signals():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")


def test_other_threads_install_nothing() -> None:
    """Outside the main thread, where Python allows no handlers, the request can still be made by hand."""
    stops: list[StopRequest] = []

    def work() -> None:
        with stop_on_signals() as stop:
            stop.request()
            stops.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stops[0].requested
