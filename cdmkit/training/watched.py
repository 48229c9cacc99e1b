"""The stream of batches that training reads: it can be left while it waits, and its labels are classes of the network."""

from __future__ import annotations

from cdmkit.errors import DataError
from cdmkit.kinds import Batch, Batches, Skip
from cdmkit.training.stopping import StopRequest


class Left(Exception):
    """Training was asked to stop while it waited for a batch."""


class Watched(Batches):
    """The batches of another stream.

    Raises Left where `stop` is set before the next one is there: a server may be silent for minutes. A label that is no class, which a
    device would stumble over, is a DataError here. (The data were looked at before, but of shards that are fetched when they are needed
    nobody may know all labels.)
    """

    def __init__(self, batches: Batches, classes: int, stop: StopRequest) -> None:
        self._batches = batches
        self._classes = classes
        self._stop = stop

    def __next__(self) -> Batch:
        batch = self._batches.awaited(self._look)
        if self._classes and batch.labels.device.type == "cpu" and int(batch.labels.max()) >= self._classes:
            worst = int(batch.labels.argmax())
            label, position = int(batch.labels[worst]), int(batch.positions[worst])
            raise DataError(
                f"the image at position {position} has the label {label}, but data.classes = {self._classes}: "
                f"set data.classes = {label + 1} or more, or 0 to ignore the labels"
            )
        return batch

    def _look(self) -> None:
        if self._stop.requested:
            raise Left

    def where(self, position: int) -> str:
        """That of the other stream."""
        return self._batches.where(position)

    @property
    def skipped(self) -> int:
        """That of the other stream."""
        return self._batches.skipped

    def skips(self) -> list[Skip]:
        """Those of the other stream."""
        return self._batches.skips()

    def close(self) -> None:
        """Close the other stream."""
        self._batches.close()
