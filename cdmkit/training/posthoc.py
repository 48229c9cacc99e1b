"""Averages that nobody kept, made after training of snapshots of others (EDM2, arXiv:2312.02696, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from torch import Tensor

from cdmkit.errors import CheckpointError, SetupError, UsageError
from cdmkit.files import replaced
from cdmkit.kinds import MAX_SIGMA_REL, power_exponent
from cdmkit.training.checkpoint import read_metadata, read_weights, told
from cdmkit.training.snapshots import Snapshot, snapshots
from cdmkit.training.tensor_file import TensorFile, write

Array = npt.NDArray[np.float64]

LARGE_RESIDUAL = 0.1
"""A residual above which an average is a rough one."""

_RANK = 1e-10
"""Directions in which profiles differ by less than this part of the most are left out: they would weigh rounding alone."""


@attrs.frozen
class Reconstruction:
    """A power average that was made of snapshots."""

    path: Path
    sigma: float
    """Its sigma_rel."""
    step: int
    """The end of its profile."""
    snapshots: int
    """How many it was made of."""
    residual: float
    """The part of its profile that the snapshots' cannot make up, as a ratio of root mean squares: 0 is exact."""

    def table(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**attrs.asdict(self), "path": str(self.path)}


def reconstruct(folder: Path, sigma: float, step: int | None = None, out: Path | None = None) -> Reconstruction:
    """Make the average of width `sigma` at `step`, by default the newest, of all snapshots up to there under a stage's folder `averages`.

    Written to `out`, by default a file in `folder`, as a weights file. Memory is taken for two networks, not for all snapshots. Raises
    UsageError where there is no such snapshot or width, CheckpointError where one is damaged, SetupError where `out` cannot be written.
    """
    if not 0 < sigma <= MAX_SIGMA_REL:
        raise UsageError(f"sigma = {sigma:g} is out of range: it must be > 0 and <= {MAX_SIGMA_REL}")
    known = snapshots(folder)
    step = _step(folder, known, step)
    used = [each for each in known if each.step <= step]
    shares, residual = weigh([(each.sigma_rel, each.step) for each in used], sigma, step)
    path = out or folder / f"sigma-{_decimals(sigma)}-step-{step:08d}.safetensors"
    about = {"sigma_rel": sigma, "snapshots": len(used), "residual": residual}
    metadata = {key: value for key, value in read_metadata(used[-1].path).items() if key not in ("step", "versions")}
    tensors = _combined(used, shares)
    try:
        with replaced(path) as beside:
            write(beside, tensors, told({**metadata, "average": about}, step))
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error}. Make room there, or choose another place by --out.") from error
    return Reconstruction(path, sigma, step, len(used), residual)


def _step(folder: Path, known: Sequence[Snapshot], step: int | None) -> int:
    """The step asked for, by default the newest. Raises UsageError where it has no snapshot."""
    if not known:
        raise UsageError(f"there are no snapshots under {folder}: train with a power average in train.averages, and train.snapshot_every")
    steps = sorted({each.step for each in known})
    if step is not None and step not in steps:
        near = min(steps, key=lambda each: abs(each - step))
        raise UsageError(
            f"there is no snapshot of step {step}; there are {len(steps)}, up to step {steps[-1]}; the nearest is of step {near}"
        )
    return steps[-1] if step is None else step


def _decimals(sigma: float) -> str:
    """At least three."""
    short = f"{sigma:.3f}"
    return short if float(short) == sigma else repr(sigma)


def weigh(known: Sequence[tuple[float, int]], sigma: float, step: int) -> tuple[Array, float]:
    """The share that each known power average, of (sigma_rel, step), has in the one of width `sigma` at `step`; and the relative residual.

    Of all shares that add up to 1, so that weights which never moved stay as they are, those by which the profile is nearest: least squares
    by inner products of the profiles, in closed form, each profile taken in units of its own size.
    """
    gammas = np.array([power_exponent(width) for width, _ in known] + [power_exponent(sigma)])
    steps = np.array([at for _, at in known] + [step], dtype=np.float64)
    products = inner(gammas[:, None], steps[:, None], gammas, steps)
    sizes = np.sqrt(np.diag(products))
    products /= np.outer(sizes, sizes)
    gram, wanted, units = products[:-1, :-1], products[:-1, -1], sizes[-1] / sizes[:-1]
    free, push = np.linalg.lstsq(gram, np.stack((wanted, units), axis=1), rcond=_RANK)[0].T
    solution = free + push * (1 - units @ free) / (units @ push)
    square = 1 - 2 * solution @ wanted + solution @ gram @ solution
    return solution * units, float(np.sqrt(max(square, 0.0)))


def inner(gamma_a: Array, t_a: Array, gamma_b: Array, t_b: Array) -> Array:
    """The integral over tau of the product of two power profiles, (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] and 0 beyond."""
    both = np.minimum(t_a, t_b)
    powers: Array = (both / t_a) ** gamma_a * (both / t_b) ** gamma_b
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * powers / np.maximum(t_a, t_b)


def _combined(used: Sequence[Snapshot], shares: Array) -> dict[str, Tensor]:
    """The sum of snapshots, each by its share, in float64, rounded at the end; what is no average is the newest's.

    Raises CheckpointError where one is damaged or of another network.
    """
    newest, _ = read_weights(used[-1].path)
    averaged = {name: like for name, like in newest.outlines.items() if like.is_floating_point() and name not in used[-1].copied}
    sums: dict[str, Tensor] = {}
    for snapshot, share in zip(used, shares.tolist(), strict=True):
        file, _ = read_weights(snapshot.path)
        _check_alike(file, newest)
        for name in averaged:
            part = file[name].double().mul_(share)
            sums[name] = sums[name].add_(part) if name in sums else part
    return {name: sums.pop(name).to(averaged[name].dtype) if name in averaged else newest[name] for name in newest}


def _check_alike(file: TensorFile, newest: TensorFile) -> None:
    one, other = ({name: like.shape for name, like in each.outlines.items()} for each in (file, newest))
    if one != other:
        raise CheckpointError(f"{file.path} is of another network than {newest.path}: remove what is not of this stage.")
