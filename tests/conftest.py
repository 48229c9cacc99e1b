"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the tiny cascade: to look at and to sample from, not to change."""
    return tiny.run(tiny.write(tmp_path_factory.mktemp("trained")))
