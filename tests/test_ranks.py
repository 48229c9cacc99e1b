"""The processes of a run: what the first tells the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from cdmkit.errors import CdmkitError, PeerLost, SetupError
from cdmkit.launching.devices import free_port
from cdmkit.ranks import Ranks, joined, launch

TOLD = """
from cdmkit.errors import CdmkitError
from cdmkit.launching.devices import free_port
from cdmkit.ranks import joined
with joined() as ranks:
    print(ranks.told(lambda: f"from {ranks.rank}, \\u00e9"), ranks.first_then_all(lambda: ranks.rank))
    def fails():
        raise KeyError("nothing there")
    try:
        ranks.told(fails)
    except KeyError:
        print("failed here")
    except CdmkitError as error:
        print(error)
"""


def test_the_first_process_speaks_for_all() -> None:
    """What it finds out is told to all, and that it failed, too; what each needs on the disk it makes first."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "PYTHONIOENCODING": "utf-8"}
    processes = [
        subprocess.Popen([sys.executable, "-c", TOLD], env={**os.environ, **place, "RANK": rank}, stdout=subprocess.PIPE, encoding="utf-8")
        for rank in "01"
    ]
    first, second = (process.communicate(timeout=60)[0].splitlines() for process in processes)
    assert first == ["from 0, é 0", "failed here"]
    assert second == ["from 0, é 1", "process 1 of 2 ends since the first one failed: its message tells why"]


def test_alone_there_is_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher, or with one process, no group is made."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert type(ranks) is Ranks
        assert (ranks.first, ranks.world, ranks.told(lambda: "x"), ranks.first_then_all(lambda: 7)) == (True, 1, "x", 7)


def test_a_start_without_a_name_is_known_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun calls a start "none" where nobody named it: its own process stands for it. Its variable tells that it is again."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert launch() == ("", False)
    for name, value in (("RUN_ID", "none"), ("RESTART_COUNT", "2")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    assert launch() == (f"{socket.gethostname()}:{os.getppid()}", True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    assert launch() == ("job7", True)


@pytest.mark.parametrize(
    ("missing", "error", "told"),
    [("MASTER_ADDR", SetupError, "WORLD_SIZE = 2, but .*MASTER_ADDR expected.*cdmkit run --devices"), ("", PeerLost, "cannot join")],
)
def test_who_cannot_join_the_others_says_why(monkeypatch: pytest.MonkeyPatch, missing: str, error: type[CdmkitError], told: str) -> None:
    """The environment does not tell where the first process is; or another one has its port, so that it may help to start again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "WORLD_SIZE": "2", "RANK": "0"}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        if missing:
            monkeypatch.delenv(missing)
        with pytest.raises(error, match=told), joined():
            pass
