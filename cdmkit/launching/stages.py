"""The stages of one recipe, trained at the same time, each on its own share of this machine's devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cdmkit.launching.group import Group, exit_code, most_telling, relaying, say, threads, words

CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"


def train_together(commands: Mapping[str, Sequence[str]], environments: Mapping[str, Mapping[str, str]]) -> int:
    """Run a command for each stage, each in an environment of its own. Returns the exit code of the first that failed, 0 where none did;
    after a signal the one that tells most, since a stage that has just begun or ended dies of it.

    Where one fails, the others are asked to save and end.
    """
    with relaying() as relay, Group() as group:
        for stage, command in commands.items():
            group.start(stage, command, environments[stage])
        relay.begin(group)
        group.wait(until_failure=True)
        if any(group.ended.values()) and not relay.asked:
            say(f"{words(group.ended)}: the other stages are asked to save and stop")
            relay.ask()
        group.wait()
        if relay.told:
            return most_telling(group.ended)
    return next((exit_code(code) for code in group.ended.values() if code), 0)


def shares(stages: Sequence[str], own: int, cards: Sequence[str]) -> dict[str, dict[str, str]]:
    """The environment of each stage: `own` of the CUDA devices, or in turn one of them where there are fewer than stages; and of the cores.

    cards: as CUDA_VISIBLE_DEVICES names them; none on a machine without.
    """
    common = {"OMP_NUM_THREADS": threads(len(stages) * own)}
    parts = [cards[start : start + own] for start in range(0, len(cards) - own + 1, own)]
    if not parts:
        return dict.fromkeys(stages, common)
    return {stage: {**common, CUDA_DEVICES: ",".join(parts[number % len(parts)])} for number, stage in enumerate(stages)}


def cuda_devices() -> list[str]:
    """The CUDA devices of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name for name in os.environ.get(CUDA_DEVICES, "").split(",") if name]
    number = torch.cuda.device_count()
    return (named or list(map(str, range(number))))[:number]
