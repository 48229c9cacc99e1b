"""A stream of batches whose labels are classes of the network."""

from __future__ import annotations

from cdmkit.errors import DataError
from cdmkit.kinds import Batch, Batches, Skip


class Labelled(Batches):
    """The batches of another stream. A label that is no class, which a device would stumble over, is a DataError here.

    The data were looked at before, but of shards that are fetched when they are needed nobody may know all labels.
    """

    def __init__(self, batches: Batches, classes: int) -> None:
        self._batches = batches
        self._classes = classes

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if self._classes and batch.labels.device.type == "cpu" and int(batch.labels.max()) >= self._classes:
            worst = int(batch.labels.argmax())
            label, position = int(batch.labels[worst]), int(batch.positions[worst])
            raise DataError(
                f"the image at position {position} has the label {label}, but data.classes = {self._classes}: "
                f"set data.classes = {label + 1} or more, or 0 to ignore the labels"
            )
        return batch

    def skips(self) -> list[Skip]:
        """Those of the other stream."""
        return self._batches.skips()

    def close(self) -> None:
        """Close the other stream."""
        self._batches.close()
