"""All that training changes: network, moving averages, optimizer, what the density learned, and the count of steps."""

from __future__ import annotations

import contextlib
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
from cdmkit.training.bad_step import BadStep
from cdmkit.training.checkpoint import Checkpoint, fit, read_weights
from cdmkit.training.ema import Ema
from cdmkit.training.step import Losses
from cdmkit.training.together import gathered, whole


class Update(NamedTuple):
    """What one step did, on the device. The scalars are equal in all processes."""

    loss: Tensor
    grad_norm: Tensor
    """Before clipping."""
    bad: Tensor
    """bool: loss or gradient was NaN or infinite, so that nothing moved."""
    t: Tensor
    """int64 [B]: the timesteps of this process's images."""
    plain: Tensor
    """[B]: their losses, without weights."""


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
        self.averages = {name: Ema(network, decay_at) for name, decay_at in stage.train.decays.items()}
        for average in self.averages.values():
            average.module = session.share(session.prepare(average.module), learns=False)
        self.ema = self.averages["ema"]
        """The one that is sampled from."""
        self.network = session.prepare(network).train()
        self.session = session
        self.shared = session.share(self.network, learns=True)
        """The network as it is called to be trained: one of all processes."""
        self.optimizer = stage.train.optimizer.build(self.network.parameters())
        # Fused optimizers leave everything as it is where their attribute `found_inf` is 1: what torch's GradScaler relies on.
        self._skips_on_device = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self._density_learns = bool(self.timesteps.state_dict())
        self.bad_steps = torch.zeros((), device=session.device)
        """How many steps in a row, up to now, were bad: a scalar on the device."""
        self.most_bad_steps = self.bad_steps
        """The largest that `bad_steps` ever was since this learner was made or restored."""
        self.last_bad: BadStep | None = None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.stage.train.lr_at(self.step)

    def update(self, losses: Callable[[Batch], Losses], parts: Iterator[Batch]) -> Update:
        """One optimizer step on the next `accumulate` parts of a batch. Never waits for the device where the optimizer is fused."""
        _seed_torch(self.bad_steps.device, Stream.of(self.seed, self.stage.name, "dropout", self.step))
        loss, t, plain = self._backward(losses, parts)
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        bad = ~torch.isfinite(loss + norm)
        if self.stage.train.clip_grad:
            clip_grads_with_norm_(parameters, self.stage.train.clip_grad, norm)
        self.last_bad = BadStep.after(self.last_bad, bad, self.step, t, plain)
        self._move(bad)
        if self._density_learns:
            t_of_all, plain_of_all = map(self.session.gather, (t, plain))
            self.timesteps.learn(t_of_all, torch.where(bad, torch.nan, plain_of_all))  # of what is not finite nothing is learned
        self.optimizer.zero_grad()
        return Update(loss, norm, bad, t, plain)

    def _backward(self, losses: Callable[[Batch], Losses], parts: Iterator[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of a step: its loss over all processes; timesteps and losses of this one's images."""
        count = self.stage.train.accumulate
        loss = torch.zeros_like(self.bad_steps)
        seen = []
        for number in range(count):
            more = self.session.more_parts(self.shared) if number < count - 1 else contextlib.nullcontext()
            with more:
                found = losses(next(parts))
                part = found.weighted.mean() / count
                part.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            seen.append((found.t, found.plain))
            loss += part.detach()
        t, plain = map(torch.cat, zip(*seen, strict=True))
        return self.session.total(loss) / self.session.world, t, plain

    def settle(self, losses: Callable[[Batch], Losses], batch: Batch) -> None:
        """Compute gradients twice and forget them: torch's DDP sees first which parameters get any, then in which order, and arranges its
        sums anew. So a run that was stopped and one that was not add in the same order, to the same bits.
        """
        for _ in range(2):
            losses(batch).weighted.mean().backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad()

    def _move(self, bad: Tensor) -> None:
        """Let the weights follow the gradients and the averages follow the weights; none moves at a bad step."""
        if self.stage.train.warmup or self.stage.train.lr_schedule:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
        stays = bad.float()
        if self._skips_on_device:
            self.optimizer.found_inf = stays  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad:
            self.optimizer.step()
        for average in self.averages.values():
            average.update(self.network, self.step, 1 - stays)
        self.bad_steps = (self.bad_steps + 1) * stays
        self.most_bad_steps = torch.maximum(self.most_bad_steps, self.bad_steps)
        self.step += 1

    def checkpoint(self) -> Checkpoint:
        """All of this, in the first process; every process calls it. The tensors are the live ones: write them before the next step."""
        tensors, rest = optimizer_state.flatten(self.optimizer, self.network)
        all_tensors = {
            "weights": self.network.state_dict(),
            **{name: average.module.state_dict() for name, average in self.averages.items()},
            "optimizer": tensors,
            "density": self.timesteps.state_dict(),
        }
        return Checkpoint(
            step=self.step,
            tensors={name: gathered(each, self.session) for name, each in all_tensors.items()},
            state={"images": self.step * self.stage.train.batch, "bad_steps": int(self.bad_steps), "optimizer": rest},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what was saved. Raises CheckpointError where that is of another network."""
        source = f"the checkpoint of step {checkpoint.step} of stage {self.stage.name!r}"
        fit(self.network, checkpoint.tensors["weights"], source)
        for name, average in self.averages.items():
            fit(average.module, checkpoint.tensors.get(name, {}), source)
        fit(self.timesteps, checkpoint.tensors.get("density", {}), source)
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
