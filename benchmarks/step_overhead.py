"""What the training loop costs beside a loop written by hand for the same network: `python benchmarks/step_overhead.py [rounds]`.

Both do the same work per step: draw timesteps and noise, noise the batch, forward and backward, gradient norm, fused Adam, moving average.
The rounds alternate, so that a busy machine slows both; the median of the ratios of process CPU time is printed. Run it with
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from cdmkit.builtin.backends import Device, Precision, Torch
from cdmkit.builtin.densities import Uniform
from cdmkit.builtin.losses import Simple
from cdmkit.builtin.optimizers import Adam
from cdmkit.builtin.samplers import Ddim
from cdmkit.builtin.schedules import Cosine
from cdmkit.builtin.thresholds import Static
from cdmkit.builtin.unet import UNet
from cdmkit.cascade import Stage, Training
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition
from cdmkit.kinds import Batch
from cdmkit.training.learner import Learner
from cdmkit.training.progress import Meter
from cdmkit.training.step import Objective

BATCH, RESOLUTION, CLASSES, STEPS = 16, 32, 10, 4

STAGE = Stage(
    name="base",
    resolution=RESOLUTION,
    schedule=Cosine(),
    density=Uniform(),
    loss=Simple(),
    backbone=UNet(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(8,), heads=4, dropout=0.0),
    sampler=Ddim(steps=10),
    threshold=Static(),
    backend=Torch(device=Device.CPU, precision=Precision.FP32),
    train=Training(batch=BATCH, steps=10**6, optimizer=Adam()),
)


def batches() -> Iterator[Batch]:
    """The same images again and again: reading data is not measured here."""
    images = torch.randint(0, 256, (BATCH, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
    labels, positions = torch.randint(0, CLASSES, (BATCH,)), torch.arange(BATCH)
    while True:
        yield Batch(images, labels, positions)
        positions = positions + BATCH


def ours() -> Callable[[], None]:
    """A step of cdmkit's loop."""
    session = STAGE.backend.start()
    learner = Learner(STAGE, classes=CLASSES, seed=0, session=session)
    objective = Objective.of(
        STAGE, None, learner.network, learner.timesteps, classes=CLASSES, downsample=Resize.AREA, seed=0, session=session
    )
    meter = Meter(STAGE, learner, lambda _event: None, CLASSES)
    stream = batches()

    def step() -> None:
        meter.add(learner.update(objective, stream))
        int(learner.most_bad_steps)

    return step


def by_hand() -> Callable[[], None]:
    """The step as one would write it for this network alone."""
    session = STAGE.backend.start()
    network: nn.Module = STAGE.backbone.build(STAGE.network_spec(CLASSES))
    network = session.prepare(network)
    ema = copy.deepcopy(network).requires_grad_(False)
    parameters: list[torch.Tensor] = list(network.parameters())
    averaged: list[torch.Tensor] = list(ema.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    alpha_bars = STAGE.schedule.alpha_bars().float()
    stream = batches()

    def step() -> None:
        images, labels, _ = next(stream)
        x0 = images.float() / 127.5 - 1
        t = torch.randint(1, len(alpha_bars), (BATCH,))
        noise = torch.randn_like(x0)
        alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        loss = (network(x_t, t.float(), Condition(labels)) - noise).square().mean()
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(averaged, parameters, 1e-4)

    return step


def measure(step: Callable[[], None]) -> float:
    """CPU seconds per step."""
    start = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - start) / STEPS


def main(rounds: int) -> None:
    """Print both times and their ratio."""
    mine, other = ours(), by_hand()
    measure(mine), measure(other)
    pairs = [(measure(mine), measure(other)) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    times = [1000 * statistics.median(column) for column in zip(*pairs, strict=True)]
    sys.stdout.write(f"cdmkit {times[0]:.1f} ms, by hand {times[1]:.1f} ms per step; ratio {ratio:.3f} (median of {rounds} rounds)\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
