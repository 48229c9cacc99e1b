"""Steps whose loss or gradient was NaN or infinite: which they were, and which images they saw."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cdmkit.kinds import Session

_SHOWN = 4
"""Images that are named, at most."""


@attrs.frozen(eq=False)
class BadStep:
    """The last step that was bad, if any was, as tensors on the device: nobody need wait to know whether there was one."""

    step: Tensor
    """Its number from 0, -1 where there was none."""
    t: Tensor
    """int64 [B]: the timesteps of this process's images."""
    losses: Tensor
    """[B]: their losses."""

    @classmethod
    def after(cls, before: BadStep | None, bad: Tensor, step: int, t: Tensor, losses: Tensor) -> BadStep:
        """What it is after step `step`: that one where it is `bad` (a bool on the device), else the one `before`."""
        if before is None:
            before = cls(torch.full((), -1, device=bad.device), torch.zeros_like(t), torch.zeros_like(losses))
        return cls(torch.where(bad, step, before.step), torch.where(bad, t, before.t), torch.where(bad, losses, before.losses))

    def images(self, session: Session, batch: int, where: Callable[[int], str]) -> str:
        """Which of its images had a loss that was not finite, in words. batch: images of a step; where: tells where one of a position lies.

        All processes ask at the same time. Empty where there was no bad step.
        """
        step, t, losses = int(self.step), session.gather(self.t), session.gather(self.losses)
        if step < 0:
            return ""
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if not bad:
            return f"At step {step + 1} the losses of all images were finite, but not the gradient. "
        named = "; ".join(f"{where(step * batch + number)} at timestep {int(t[number])}" for number in bad[:_SHOWN])
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        return f"At step {step + 1} the loss of {len(bad)} of {batch} images was not finite: {named}{more}. "
