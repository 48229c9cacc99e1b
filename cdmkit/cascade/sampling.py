"""Sampling through a cascade: each stage enlarges what the one before it made (CDM Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade.stage import Mode, Stage
from cdmkit.diffusion import Condition, Denoised, Process
from cdmkit.diffusion.denoiser import Denoise
from cdmkit.draws import Draw, Stream
from cdmkit.errors import NumericsError
from cdmkit.kinds import Session

Tick = Callable[[str], None]
"""Told a stage's name after each of its network calls."""


def _quiet(_stage: str) -> None:
    """Tell nobody."""


@attrs.frozen(eq=False)
class Renderer:
    """Stages ready to be sampled: the options of each, its network and the device it lies on.

    lineage: from a base stage to the one wanted, each conditioned on the one before it.
    networks, sessions: by stage name. A network takes and gives what `cdmkit.kinds.Backbone.build` says.
    """

    lineage: Sequence[Stage]
    networks: Mapping[str, nn.Module]
    sessions: Mapping[str, Session]
    seed: int = 0
    tick: Tick = _quiet

    @torch.inference_mode()
    def __call__(self, indices: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sample the images numbered `indices` (int64 [B]) with `labels` (int64 [B]): each stage's images [B, 3, R, R], on the CPU.

        Image i depends on (seed, i) and its label alone, up to the rounding of the device. A truncated stage's parent yields z_s.
        Raises NumericsError, naming stage and images, where a sample is not finite.
        """
        made: dict[str, Tensor] = {}
        low_res: Tensor | None = None
        for position, stage in enumerate(self.lineage):
            parent = self.lineage[position - 1] if position else None
            child = self.lineage[position + 1] if position + 1 < len(self.lineage) else None
            low_res = self.stage(stage, parent, low_res, indices, labels, stop_at(child))
            made[stage.name] = low_res.cpu()
        return made

    @torch.inference_mode()
    def stage(self, stage: Stage, parent: Stage | None, low_res: Tensor | None, indices: Tensor, labels: Tensor, s: int = 0) -> Tensor:
        """Sample one stage, from the images `low_res` of its parent if it has one, to x_0 or to z_s: [B, 3, R, R] on its device."""
        session = self.sessions[stage.name]
        indices, labels = indices.to(session.device), labels.to(session.device)
        told = condition(
            stage,
            labels,
            low_res=None if low_res is None else low_res.to(session.device),
            parent=None if parent is None else parent.schedule.process().to(session.device),
            draws=lambda number: Draw(Stream.of(self.seed, stage.name, "sample", "augment", number), indices),
        )
        noise = Stream.of(self.seed, stage.name, "sample", "noise")
        shape = (3, stage.resolution, stage.resolution)
        denoise = self._watched(stage.name, session, stage.denoiser(self.networks[stage.name]).bind(told))
        with session.autocast():
            images = stage.sampler(
                denoise, noise.normal(indices, shape), stage.sampling_process(), lambda k: noise.normal(indices, shape, step=k), s
            )
        _check_finite(stage, images, indices)
        return images

    def _watched(self, name: str, session: Session, denoise: Denoise) -> Denoise:
        """The denoiser, counting its calls and marking each step's end."""

        def watched(x_t: Tensor, t: Tensor, process: Process) -> Denoised:
            denoised = denoise(x_t, t, process)
            session.boundary()
            self.tick(name)
            return denoised

        return watched

    def calls(self) -> dict[str, int]:
        """Network calls for one batch, by stage."""
        children = [*self.lineage[1:], None]
        return {
            stage.name: stage.sampler.calls(stage.sampling_process(), stop_at(child))
            for stage, child in zip(self.lineage, children, strict=True)
        }


def stop_at(child: Stage | None) -> int:
    """The timestep at which a stage's chain ends: s where the stage after it takes over a truncated one, else 0 (clean)."""
    return child.condition.s if child is not None and child.condition.mode is Mode.TRUNCATED else 0


def condition(stage: Stage, labels: Tensor, low_res: Tensor | None, parent: Process | None, draws: Callable[[int], Draw]) -> Condition:
    """What a stage's network is told when sampling. low_res: the parent's images; draws(n): chance for the n-th augmentation."""
    label = labels if stage.labels else None
    if low_res is None or parent is None:
        return Condition(label)
    levels = []
    truncated = stage.condition.mode is Mode.TRUNCATED
    for number, augmentation in enumerate(stage.augment):
        low_res, level = augmentation.sample(low_res, parent, draws(number), stage.condition.s, truncated)
        if level is not None:
            levels.append(level)
    return Condition(label, stage.upsample(low_res, stage.resolution), torch.stack(levels, 1) if levels else None)


def _check_finite(stage: Stage, images: Tensor, indices: Tensor) -> None:
    finite = images.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        bad = indices[~finite].tolist()
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise NumericsError(
            f"stage {stage.name!r}: {len(bad)} of {len(images)} samples are not finite (images {shown}). "
            f"Its weights or its sampler's steps are at fault: try more steps, or an earlier checkpoint."
        )
