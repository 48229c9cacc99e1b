"""What tests of several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import tiny

# One thread: small tensors gain nothing from more, and equal bits need equal numbers of threads, in this process and in those it starts.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests and the processes they start keep in the user's cache goes to a folder of theirs."""
    os.environ["CDMKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the tiny cascade: to look at and to sample from, not to change."""
    return tiny.run(tiny.write(tmp_path_factory.mktemp("trained")))
