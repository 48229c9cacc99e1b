"""What can go wrong, and the exit code of each.

Everything a user can cause is a `CdmkitError`: one message that says what is wrong, where it is and how to mend it. The command line
prints the message without a traceback and leaves with the class's exit code. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

from typing import ClassVar


class CdmkitError(Exception):
    """A failure that the user can act on. `exit_code` is what the process returns."""

    exit_code: ClassVar[int] = 1


class PeerLost(CdmkitError):
    """Another process of the same run is gone or failed: its own message tells why. What is saved stands; the launcher starts all anew."""


class FirstFailed(PeerLost):
    """The first process of the same run failed, and tells of it for all."""


class UsageError(CdmkitError):
    """The command was called wrongly."""

    exit_code = 2


class RecipeError(CdmkitError):
    """The recipe is at fault."""

    exit_code = 3


class SetupError(CdmkitError):
    """A plugin, a device, a missing distribution or a folder that cannot be used."""

    exit_code = 4


class DataError(CdmkitError):
    """The training data is missing, unreadable or does not fit the recipe."""

    exit_code = 5


class NumericsError(CdmkitError):
    """NaN or infinity where a finite number is needed."""

    exit_code = 6


class CheckpointError(CdmkitError):
    """A checkpoint cannot be read, written or does not fit."""

    exit_code = 7


class Stopped(CdmkitError):
    """Stopped by a signal after saving; `--resume` goes on from there."""

    exit_code = 75
