"""What moving averages cost at each step: `python benchmarks/averages.py [rounds]`.

One, two and four averages of a U-Net's weights are updated in turn, so that a busy machine slows all; the median of the process CPU time is
printed for each, and how many times that of one it is. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from cdmkit.builtin.averages import Power
from cdmkit.builtin.unet import UNet
from cdmkit.kinds import NetworkSpec
from cdmkit.training.ema import Ema

COUNTS = (1, 2, 4)
SPEC = NetworkSpec(resolution=32, out_channels=3, classes=10, unlabeled=False, low_res=False, levels=0)


def main(rounds: int) -> None:
    """Print a line for each number of averages."""
    network = UNet(channels=64, multipliers=(1, 2, 3, 4), blocks=2, attention=(8, 16), heads=4).build(SPEC)
    averages = [Ema(network, Power(sigma_rel=0.1).decay_at) for _ in range(max(COUNTS))]
    moves = torch.ones(())
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for step in range(rounds + 1):
        for count in COUNTS:
            start = time.process_time()
            for average in averages[:count]:
                average.update(network, 1000 + step, moves)
            if step:  # the first is to warm up
                times[count].append(1000 * (time.process_time() - start))
    one = statistics.median(times[1])
    sys.stdout.write(f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters, median of {rounds} rounds\n")
    for count, each in times.items():
        sys.stdout.write(f"{count}: {statistics.median(each):.1f} ms, {statistics.median(each) / one:.2f} times one\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
