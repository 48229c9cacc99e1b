"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class Retention:
    """How many checkpoints are kept, and for what. The newest always is."""

    newest: int
    """The newest ones, at least 1."""
    every: int = 0
    """Those of steps that are multiples of this, for good; 0: none."""
    best: int = 0
    """Those of the lowest losses; of equal ones the older."""

    def keeps(self, losses: Mapping[int, float | None]) -> set[int]:
        """The steps whose checkpoints stay, of those in `losses`, which has the loss of each; None where a loss cannot be compared.

        A checkpoint that is not among the best once never will be, so it makes no difference that others are gone by now.
        """
        newest = sorted(losses)[-self.newest :]
        regular = [step for step in losses if self.every and step % self.every == 0]
        known = sorted((loss, step) for step, loss in losses.items() if loss is not None)
        return {*newest, *regular, *(step for _, step in known[: self.best])}
