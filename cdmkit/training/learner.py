"""All that training changes: network, moving average, optimizer, what the density learned, and the count of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from cdmkit.cascade import Stage
from cdmkit.draws import Stream
from cdmkit.kinds import Batch, Session
from cdmkit.training import optimizer_state
from cdmkit.training.checkpoint import Checkpoint, fit, read_weights
from cdmkit.training.ema import Ema
from cdmkit.training.step import Losses


class Update(NamedTuple):
    """What one step did: scalars on the device."""

    loss: Tensor
    grad_norm: Tensor
    """Before clipping."""
    bad: Tensor
    """bool: loss or gradient was NaN or infinite, so that nothing moved."""


class Learner:
    """A stage's network while it learns. Equal seeds make equal learners; `restore` makes one equal to that of a checkpoint."""

    def __init__(self, stage: Stage, *, classes: int, seed: int, session: Session) -> None:
        self.stage = stage
        self.seed = seed
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            _seed_torch(torch.device("cpu"), Stream.of(seed, stage.name, "init"))
            network = stage.backbone.build(stage.network_spec(classes))
        if stage.weights is not None:
            fit(network, read_weights(Path(stage.weights))[0], stage.weights)
        self.timesteps = stage.density.start(stage.process()).to(session.device)
        self.ema = Ema(network, stage.train.ema, stage.train.ema_ramp)
        self.ema.module = session.prepare(self.ema.module)
        self.network = session.prepare(network).train()
        self.optimizer = stage.train.optimizer.build(self.network.parameters())
        # Fused optimizers leave everything as it is where their attribute `found_inf` is 1: what torch's GradScaler relies on.
        self._skips_on_device = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.bad_steps = torch.zeros((), device=session.device)
        """How many steps in a row, up to now, were bad: a scalar on the device."""
        self.most_bad_steps = self.bad_steps
        """The largest that `bad_steps` ever was since this learner was made or restored."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step: lr min(1, (step + 1) / warmup)."""
        share = min(1.0, (self.step + 1) / self.stage.train.warmup) if self.stage.train.warmup else 1.0
        return self.stage.train.optimizer.lr * share

    def update(self, losses: Callable[[Batch], Losses], parts: Iterator[Batch]) -> Update:
        """One optimizer step on the next `accumulate` parts of a batch. Never waits for the device where the optimizer is fused."""
        _seed_torch(self.bad_steps.device, Stream.of(self.seed, self.stage.name, "dropout", self.step))
        count = self.stage.train.accumulate
        loss = torch.zeros_like(self.bad_steps)
        seen = []
        for _ in range(count):
            found = losses(next(parts))
            seen.append((found.t, found.plain))
            part = found.weighted.mean() / count
            part.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            loss += part.detach()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        bad = ~torch.isfinite(loss + norm)
        if self.stage.train.clip_grad:
            clip_grads_with_norm_(parameters, self.stage.train.clip_grad, norm)
        self._move(bad)
        t, plain = map(torch.cat, zip(*seen, strict=True))
        self.timesteps.learn(t, torch.where(bad, torch.nan, plain))  # of what is not finite nothing is learned
        self.optimizer.zero_grad()
        return Update(loss, norm, bad)

    def _move(self, bad: Tensor) -> None:
        """Let the weights follow the gradients and the average follow the weights; neither moves at a bad step."""
        if self.stage.train.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
        stays = bad.float()
        if self._skips_on_device:
            self.optimizer.found_inf = stays  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad:
            self.optimizer.step()
        self.ema.update(self.network, self.step, 1 - stays)
        self.bad_steps = (self.bad_steps + 1) * stays
        self.most_bad_steps = torch.maximum(self.most_bad_steps, self.bad_steps)
        self.step += 1

    def checkpoint(self) -> Checkpoint:
        """All of this. The tensors are the live ones: write them before the next step."""
        tensors, rest = optimizer_state.flatten(self.optimizer, self.network)
        return Checkpoint(
            step=self.step,
            tensors={
                "weights": self.network.state_dict(),
                "ema": self.ema.module.state_dict(),
                "optimizer": tensors,
                "density": self.timesteps.state_dict(),
            },
            state={"images": self.step * self.stage.train.batch, "bad_steps": int(self.bad_steps), "optimizer": rest},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what was saved. Raises CheckpointError where that is of another network."""
        source = f"the checkpoint of step {checkpoint.step} of stage {self.stage.name!r}"
        fit(self.network, checkpoint.tensors["weights"], source)
        fit(self.ema.module, checkpoint.tensors["ema"], source)
        fit(self.timesteps, checkpoint.tensors["density"], source)
        optimizer_state.restore(self.optimizer, self.network, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
        self.step = checkpoint.step
        self.bad_steps = torch.full_like(self.bad_steps, checkpoint.state["bad_steps"])
        self.most_bad_steps = self.bad_steps

    def parameter_count(self) -> int:
        """How many numbers the network learns."""
        return sum(p.numel() for p in self.network.parameters())


def _seed_torch(device: torch.device, stream: Stream) -> None:
    """Seed torch's own generator, which decides initial weights and dropout. Alone, the CPU's takes a hundredth of the time of all."""
    seed = stream.key[0] | stream.key[1] << 32
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
