"""Which timesteps of a chain sampling visits: the ways that are published. All count from 1 (noisy) to T."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, repeat


def even_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` equally spaced reals in [1, T], rounded (Improved DDPM, arXiv:2102.09672, section 4). T is always visited.

    Ties, and sums that fall beside them, go as in its code: the stride is added up from 0, then rounded as Python does.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"cannot respace {timesteps} timesteps to {steps}: it must be 1 to {timesteps}")
    if steps == 1:
        return [timesteps]
    stride = (timesteps - 1) / (steps - 1)
    return [1 + round(place) for place in accumulate(repeat(stride, steps - 1), initial=0.0)]


def strided_timesteps(timesteps: int, steps: int) -> list[int]:
    """Every n-th timestep from 1 on, n the smallest that makes `steps` of them: `ddimN` of Improved DDPM's code, after DDIM's.

    T is not visited in general: the chain starts at the last of them, with noise that is taken for x_T.
    """
    for stride in range(1, timesteps + 1):
        visited = list(range(1, timesteps + 1, stride))
        if len(visited) == steps:
            return visited
    raise ValueError(f"no whole stride makes {steps} of {timesteps} timesteps")


def sectioned_timesteps(timesteps: int, counts: Sequence[int]) -> list[int]:
    """As many timesteps in each of several equal sections, from the cleanest, as `counts` says (Improved DDPM's code: "10,15,20").

    Within a section they are equally spaced, its ends among them; a count of 1 takes its last timestep, so that T is visited.
    """
    size, extra = divmod(timesteps, len(counts))
    visited, start = [], 0
    for section, count in enumerate(counts):
        width = size + (section < extra)
        if not 0 <= count <= width:
            raise ValueError(f"section {section + 1} has {width} timesteps: {count} of them cannot be visited")
        visited += [start + timestep for timestep in (even_timesteps(width, count) if count else [])]
        start += width
    if not visited:
        raise ValueError("no timestep is visited")
    return visited
