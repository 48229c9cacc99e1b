"""Sampling through a cascade: each stage enlarges what the one before it made (CDM Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade.stage import LowRes, Mode, Stage
from cdmkit.diffusion import Condition, Denoise, Denoised, Denoiser, Point
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
    networks, sessions: by stage name. A network takes and gives what `cdmkit.kinds.Backbone.build` says. guides: by stage name, the
    networks that the stages' guidance names.
    """

    lineage: Sequence[Stage]
    networks: Mapping[str, nn.Module]
    sessions: Mapping[str, Session]
    seed: int = 0
    tick: Tick = _quiet
    guides: Mapping[str, Denoiser] = attrs.field(factory=dict)
    labeled: bool = True
    """Whether the data has classes: else networks are told none, whatever the labels."""

    @torch.inference_mode()
    def __call__(self, indices: Tensor, labels: Tensor, low_res: Tensor | None = None) -> dict[str, Tensor]:
        """Sample the images numbered `indices` (int64 [B]) with `labels` (int64 [B]): each stage's images [B, 3, R, R], on the CPU.

        low_res: the real images [B, 3, r, r] that the first stage enlarges, where it does. Image i depends on (seed, i), its label and
        its real image alone, up to the rounding of the device. A truncated stage's parent yields z_s.
        Raises NumericsError, naming stage and images, where a sample is not finite.
        """
        made: dict[str, Tensor] = {}
        for position, stage in enumerate(self.lineage):
            parent = self.lineage[position - 1] if position else None
            child = self.lineage[position + 1] if position + 1 < len(self.lineage) else None
            low_res = self.stage(stage, parent, low_res, indices, labels, stop_at(child))
            made[stage.name] = low_res.cpu()
        return made

    @torch.inference_mode()
    def stage(self, stage: Stage, parent: Stage | None, low_res: Tensor | None, indices: Tensor, labels: Tensor, s: int = 0) -> Tensor:
        """Sample one stage, from the images `low_res` that it enlarges if it does, to x_0 or to z_s: [B, 3, R, R] on its device."""
        session = self.sessions[stage.name]
        indices, labels = indices.to(session.device), labels.to(session.device)
        told = condition(
            stage,
            labels if self.labeled else None,
            low_res=None if low_res is None else low_res.to(session.device),
            enlarges=stage.enlarges(parent),
            draws=lambda number: Draw(Stream.of(self.seed, stage.name, "sample", "augment", number), indices),
        )
        noise = Stream.of(self.seed, stage.name, "sample", "noise")
        shape = (3, stage.resolution, stage.resolution)
        denoise = self._watched(stage.name, session, self._denoise(stage, told))
        with session.autocast():
            images = stage.sampler(
                denoise, noise.normal(indices, shape), stage.sampling_process(), lambda k: noise.normal(indices, shape, step=k), s
            )
        _check_finite(stage, images, indices)
        return images

    def _denoise(self, stage: Stage, told: Condition) -> Denoise:
        """What the sampler calls: the stage's network, guided where it is."""
        denoiser, guidance = stage.denoiser(self.networks[stage.name]), stage.guidance
        return denoiser.bind(told, None if guidance is None else guidance(denoiser, told, self.guides.get(stage.name)))

    def _watched(self, name: str, session: Session, denoise: Denoise) -> Denoise:
        """The denoiser, counting its calls and marking each step's end."""

        def watched(x_t: Tensor, point: Point) -> Denoised:
            denoised = denoise(x_t, point)
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


def condition(
    stage: Stage, labels: Tensor | None, low_res: Tensor | None, enlarges: LowRes | None, draws: Callable[[int], Draw]
) -> Condition:
    """What a stage's network is told when sampling. labels: None where the data has no classes. low_res: the images it enlarges.
    draws(n): chance for the n-th augmentation.
    """
    label = labels if stage.labels else None
    if low_res is None or enlarges is None:
        return Condition(label)
    levels = []
    truncated = stage.condition.mode is Mode.TRUNCATED
    chain = enlarges.schedule.process().to(low_res.device, low_res.dtype)
    for number, augmentation in enumerate(stage.augment):
        low_res, level = augmentation.sample(low_res, chain, draws(number), stage.condition.s, truncated)
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
