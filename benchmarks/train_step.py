"""How long a training step takes beside those of diffusers and guided-diffusion, for networks with as many parameters and operations.

    PYTHONPATH=.:path/to/guided-diffusion OMP_NUM_THREADS=1 python benchmarks/train_step.py [--rounds 9] [--json FILE]

Beside cdmkit's needs diffusers (0.42.1) installed and openai/guided-diffusion (22e0df8) on PYTHONPATH; who is not there is left out.

A step is all of it: noising, forward and backward pass, loss, gradient norm and clipping, optimizer, moving average. cdmkit's is
`Learner.update` with a stage's `Objective`. diffusers' is that of its training script: DDPMScheduler.add_noise, mse_loss, clip_grad_norm_,
AdamW, EMAModel. guided-diffusion's is that of its TrainLoop, written anew here since that needs MPI: GaussianDiffusion.training_losses, the
norms that it logs, AdamW, update_ema. guided-diffusion is measured in fp32 alone: its own recomputation does not know autocast.

Each has a process of its own, and they take turns, step by step; each turn gives a ratio, so that a busy machine slows all alike. Medians
and quartiles of the ratios are printed. On a CPU time is that of the process, on CUDA that of the clock once the device is done.
"After it" is what follows the gradients without clipping: their norm, optimizer and moving average. "Executed" are the operations that are
left of GF/image where cdmkit doubles and convolves in one go.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm
from torch.utils.flop_counter import FlopCounterMode

from cdmkit.builtin import layers
from cdmkit.builtin.backends import Device, Precision, Torch
from cdmkit.builtin.densities import Uniform
from cdmkit.builtin.losses import Simple
from cdmkit.builtin.optimizers import AdamW
from cdmkit.builtin.samplers import Ddim
from cdmkit.builtin.schedules import Linear
from cdmkit.builtin.thresholds import Static
from cdmkit.builtin.unet import UNet
from cdmkit.cascade import Stage, Training
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition
from cdmkit.kinds import Batch
from cdmkit.training.learner import Learner
from cdmkit.training.step import Objective

CLASSES, CHANNELS, MULTIPLIERS, BLOCKS, ATTENTION, HEADS, STEPS = 1000, 64, (1, 2, 3, 4), 2, (8, 16), 4, 1000


@attrs.frozen
class Case:
    """A network, what it is trained on, and how."""

    name: str
    resolution: int
    batch: int
    low_res: int | None
    device: str
    bf16: bool
    compile: bool

    def images(self) -> Tensor:
        """A batch in [-1, 1], the same every time: reading data is not measured."""
        return torch.rand(self.batch, 3, self.resolution, self.resolution) * 2 - 1

    def labels(self) -> Tensor:
        """A class for each."""
        return torch.randint(0, CLASSES, (self.batch,))

    def autocast(self) -> torch.autocast:
        """Mixed precision, if chosen."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def shrunk(self, images: Tensor) -> Tensor:
        """The images to enlarge, at their own resolution."""
        return F.interpolate(images, self.low_res, mode="area")

    def enlarged(self, images: Tensor) -> Tensor:
        """The same at the resolution of the network."""
        return F.interpolate(self.shrunk(images), self.resolution, mode="bilinear")


@attrs.frozen(eq=False)
class Contestant:
    """A training step."""

    network: nn.Module
    call: Callable[[], object]
    """The forward pass for a batch."""
    step: Callable[[], object]
    rest: Callable[[], object]
    """Of the step what follows the gradients: their norm, optimizer, moving average."""

    def sizes(self, case: Case) -> dict[str, float]:
        """Parameters, and 10^9 operations of the forward pass for an image, a multiply-accumulate being two."""
        with mock.patch.object(layers, "_PIXELS_TO_TRANSPOSE", sys.maxsize):
            gflops = self._gflops(case)
        return {
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "gflops": gflops,
            "executed_gflops": self._gflops(case),
        }

    def _gflops(self, case: Case) -> float:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.call()
        return float(counter.get_total_flops()) / case.batch / 1e9


def of_cdmkit(case: Case) -> Contestant:
    """The step of cdmkit's training loop."""
    stage = Stage(
        name="stage",
        resolution=case.resolution,
        low_res=case.low_res,
        schedule=Linear(timesteps=STEPS),
        density=Uniform(),
        loss=Simple(),
        backbone=UNet(channels=CHANNELS, multipliers=MULTIPLIERS, blocks=BLOCKS, attention=ATTENTION, heads=HEADS),
        sampler=Ddim(steps=10),
        threshold=Static(),
        backend=Torch(device=Device(case.device), precision=Precision.BF16 if case.bf16 else Precision.FP32, compile=case.compile),
        train=Training(batch=case.batch, steps=10**6, optimizer=AdamW(), clip_grad=1.0),
    )
    session = stage.backend.start()
    learner = Learner(stage, classes=CLASSES, seed=0, session=session)
    objective = Objective.of(
        stage, None, learner.shared, learner.timesteps, classes=CLASSES, downsample=Resize.AREA, seed=0, session=session
    )

    def batches() -> Iterator[Batch]:
        images, labels, positions = ((case.images() + 1) * 127.5).to(torch.uint8), case.labels(), torch.arange(case.batch)
        while True:
            yield Batch(images, labels, positions)
            positions = positions + case.batch

    stream, x = batches(), case.images().to(case.device)
    told = Condition(case.labels().to(case.device), None if case.low_res is None else case.enlarged(x))
    parameters, moves = list(learner.network.parameters()), torch.ones((), device=case.device)

    def rest() -> None:
        get_total_norm([p.grad for p in parameters if p.grad is not None])
        learner.optimizer.step()
        learner.ema.update(learner.network, 0, moves)

    return Contestant(
        network=learner.network,
        call=lambda: learner.network(x, torch.ones(case.batch, device=case.device), told),
        step=lambda: learner.update(objective, stream),
        rest=rest,
    )


def of_diffusers(case: Case) -> Contestant:
    """The step of diffusers' training script, with labels, and in super-resolution with the enlarged image beside the noised one."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.training_utils import EMAModel

    attends = [case.resolution >> level in ATTENTION for level in range(len(MULTIPLIERS))]
    network = UNet2DModel(
        sample_size=case.resolution,
        in_channels=3 if case.low_res is None else 6,
        block_out_channels=tuple(CHANNELS * each for each in MULTIPLIERS),
        layers_per_block=BLOCKS,
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        attention_head_dim=CHANNELS // 2,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=CLASSES,
    ).to(case.device)
    for module in network.modules():
        if isinstance(module, Attention):
            module.heads = HEADS  # it can be told the width of heads alone
    if case.device == "cuda":
        network.to(memory_format=torch.channels_last)
    if case.compile:
        network.compile()
    scheduler = DDPMScheduler(STEPS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ema.to(case.device)
    images, labels = case.images().to(case.device), case.labels().to(case.device)

    def call(x_t: Tensor, t: Tensor) -> Tensor:
        x = x_t if case.low_res is None else torch.cat((x_t, case.enlarged(images)), dim=1)
        said: Tensor = network(x, t, class_labels=labels).sample
        return said

    def rest() -> None:
        get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        optimizer.step()
        ema.step(network.parameters())

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, STEPS, (case.batch,), device=case.device)
        with case.autocast():
            loss = F.mse_loss(call(scheduler.add_noise(images, noise, t), t).float(), noise)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.step(network.parameters())
        optimizer.zero_grad()

    return Contestant(network, lambda: call(images, torch.ones(case.batch, device=case.device)), step, rest)


def of_guided(case: Case) -> Contestant:
    """The step of guided-diffusion's TrainLoop, in one microbatch."""
    from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType, get_named_beta_schedule
    from guided_diffusion.nn import update_ema
    from guided_diffusion.resample import UniformSampler
    from guided_diffusion.unet import SuperResModel, UNetModel

    network = (UNetModel if case.low_res is None else SuperResModel)(
        case.resolution,
        3,
        model_channels=CHANNELS,
        out_channels=3,
        num_res_blocks=BLOCKS,
        attention_resolutions=tuple(case.resolution // each for each in ATTENTION),
        channel_mult=MULTIPLIERS,
        num_classes=CLASSES,
        num_heads=HEADS,
        use_scale_shift_norm=True,
    ).to(case.device)
    chain = GaussianDiffusion(
        betas=get_named_beta_schedule("linear", STEPS),
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.FIXED_LARGE,
        loss_type=LossType.MSE,
    )
    sampler, parameters = UniformSampler(chain), list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    averaged = copy.deepcopy(parameters)
    images, told = case.images().to(case.device), {"y": case.labels().to(case.device)}
    logged: dict[str, float] = {}

    def condition() -> dict[str, Tensor]:
        return told if case.low_res is None else {**told, "low_res": case.shrunk(images)}

    def rest() -> None:
        with torch.no_grad():
            for name, tensors in (("param", parameters), ("grad", [p.grad for p in parameters if p.grad is not None])):
                logged[name] = sum(torch.norm(each, p=2, dtype=torch.float32).item() ** 2 for each in tensors) ** 0.5
        optimizer.step()
        update_ema(averaged, parameters, rate=0.9999)

    def step() -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        t, weights = sampler.sample(case.batch, images.device)
        losses = chain.training_losses(network, images, t, model_kwargs=condition())
        loss = (losses["loss"] * weights).mean()
        for name, values in losses.items():
            logged[name] = (values * weights).mean().item()
            for at, value in zip(t.cpu().numpy(), values.detach().cpu().numpy(), strict=True):
                logged[f"{name}_q{4 * at // STEPS}"] = value
        torch.autograd.backward(loss)
        rest()

    return Contestant(network, lambda: network(images, torch.ones(case.batch, device=case.device), **condition()), step, rest)


CONTESTANTS: dict[str, Callable[[Case], Contestant]] = {
    "cdmkit": of_cdmkit,
    "diffusers": of_diffusers,
    "guided-diffusion": of_guided,
}


def timed(work: Callable[[], object], device: str) -> float:
    """Milliseconds of one call, or of each of ten on CUDA."""
    if device == "cpu":
        start = time.process_time()
        work()
        return 1000 * (time.process_time() - start)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        work()
    torch.cuda.synchronize()
    return 100 * (time.perf_counter() - start)


def take_part(name: str, case: Case, threads: int, line: Connection) -> None:
    """A contestant's process. Does what it is told on the line, and answers."""
    torch.set_num_threads(threads)
    try:
        contestant = CONTESTANTS[name](case)
    except ImportError as missing:
        line.send(f"{name} is left out: {missing}")
        return
    line.send(contestant.sizes(case))
    with contextlib.suppress(EOFError):
        while asked := line.recv():
            if asked == "rest":
                for parameter in contestant.network.parameters():
                    parameter.grad = torch.full_like(parameter, 1e-3)
            line.send(timed(contestant.rest if asked == "rest" else contestant.step, case.device))


@contextlib.contextmanager
def contestants(case: Case, threads: int) -> Iterator[tuple[dict[str, Connection], dict[str, dict[str, float]]]]:
    """The lines to all that can take part, cdmkit first, and how large their networks are."""
    context = multiprocessing.get_context("spawn")
    lines, sizes = {}, {}
    for name in CONTESTANTS:
        if name == "guided-diffusion" and (case.bf16 or case.compile):
            continue
        line, other = context.Pipe()
        context.Process(target=take_part, args=(name, case, threads, other), daemon=True).start()
        answer = line.recv()
        if isinstance(answer, str):
            say(answer)
        else:
            lines[name], sizes[name] = line, answer
    try:
        yield lines, sizes
    finally:
        for line in lines.values():
            line.send("")


def by_turns(lines: dict[str, Connection], what: str, rounds: int) -> dict[str, dict[str, float]]:
    """Of each the median milliseconds, and the quartiles of cdmkit's time as a share of its own in the same turn."""
    taken: dict[str, list[float]] = {name: [] for name in lines}
    for turn in range(-2, rounds):
        for name, line in lines.items():
            line.send(what)
            milliseconds = line.recv()
            if turn >= 0:
                taken[name].append(milliseconds)
    found = {}
    for name, each in taken.items():
        shares = [mine / other for mine, other in zip(taken["cdmkit"], each, strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
        found[name] = {"ms": statistics.median(each), "share": middle, "low": low, "high": high}
    return found


def measured(case: Case, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each contestant."""
    with contestants(case, threads) as (lines, sizes):
        steps = by_turns(lines, "step", rounds)
        rests = by_turns(lines, "rest", rounds)
    rows = []
    for name, size in sizes.items():
        of_rest = {f"rest_{key}": value for key, value in rests[name].items()}
        rows.append({**attrs.asdict(case), "threads": threads, "contestant": name, **size, **steps[name], **of_rest})
    return rows


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows of one case."""
    first = rows[0]
    say(f"\n{first['name']}: {first['resolution']} px, batch {first['batch']}, {'bf16' if first['bf16'] else 'fp32'}, {first['device']}")
    say(f"{'':<17}{'parameters':>11}{'GF/image':>9}{'executed':>9}{'step ms':>9}  cdmkit / it {'after it ms':>16}  cdmkit / it")
    for row in rows:
        shares = [f"{row[f'{of}share']:.3f} [{row[f'{of}low']:.2f}-{row[f'{of}high']:.2f}]" for of in ("", "rest_")]
        say(
            f"{row['contestant']:<17}{row['parameters']:>11,}{row['gflops']:>9.3f}{row['executed_gflops']:>9.3f}{row['ms']:>9.0f}  "
            f"{shares[0]:<19}{row['rest_ms']:>8.1f}  {shares[1]}"
        )
    alike = {(row["parameters"], round(row["gflops"], 3)) for row in rows}
    say("" if len(alike) == 1 else "These networks are NOT of the same size: do not compare them.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns (default 9)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: both on a CPU, bf16 on CUDA")
    parser.add_argument("--network", choices=("base", "sr"), help="32 px, batch 8; or 32 to 64 px, batch 4; default: both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    say(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {given.threads} threads, {given.rounds} rounds")
    precisions = [given.precision] if given.precision else ["bf16"] if given.device == "cuda" else ["fp32", "bf16"]
    scale, rows = 32 if given.device == "cuda" else 1, []
    for precision in precisions:
        for name, resolution, batch, low_res in (("base", 32, 8, None), ("sr", 64, 4, 32)):
            if given.network in (None, name):
                case = Case(name, resolution, batch * scale, low_res, given.device, precision == "bf16", given.compile)
                rows.append(measured(case, given.threads, given.rounds))
                table(rows[-1])
    if given.json:
        given.json.write_text(json.dumps([row for found in rows for row in found], indent=1))


if __name__ == "__main__":
    main()
