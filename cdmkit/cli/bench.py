"""`cdmkit bench`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import json_option, loaded_plugins, overrides_option, print_json, print_table

if TYPE_CHECKING:
    from cdmkit.benching import Measured


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--stage", "names", metavar="NAME", multiple=True, help="A stage to measure; may be given several times. By default every one."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Time for each measurement; a few steps are made in any case.",
)
@overrides_option
@json_option
def bench(recipe: Path, names: tuple[str, ...], seconds: float, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure the stages of RECIPE on the devices that it names: calls of the network, training steps, sampling steps.

    Images are random: no data is read, and nothing is written. Times are medians, after some steps to warm up. The speed is that of the
    network's products, where a training step counts for three calls; it is compared with the fastest product of two matrices.
    """
    import attrs

    from cdmkit.benching import Bench
    from cdmkit.cli.bars import rate
    from cdmkit.log import jsonable
    from cdmkit.recipe import read

    plugins = loaded_plugins()
    found = read(recipe, plugins, overrides)
    stages = [found.cascade.named(name) for name in names] or list(found.cascade)
    measure = Bench(recipe=found, plugins=plugins, seconds=seconds, tell=lambda text: click.echo(text, err=True))
    measured = [measure(stage) for stage in stages]
    if as_json:
        print_json([jsonable(attrs.asdict(each)) for each in measured])
        return
    heads = ("stage", "parameters", "what", "images", "ms", "images/s", "speed", "of peak", "memory")
    print_table(heads, [row for each in measured for row in _rows(each)])
    for each in measured:
        peak = f"the fastest product of two matrices in {each.precision} on {each.device}"
        click.echo(f"{each.stage}: 100 % is {rate(each.matmul_gflops)}, {peak}")


def _rows(each: Measured) -> Iterator[list[str]]:
    """The numbers of a stage for people."""
    from cdmkit.cli.bars import rate

    named = [each.stage, f"{each.parameters / 1e6:.4g} M"]
    for what, speed in (("call", each.call), ("training step", each.step), (f"sampling step of {each.calls}", each.sampling)):
        if speed is not None:
            of_peak = f"{100 * speed.utilization:.3g} %" if math.isfinite(speed.utilization) else ""
            memory = "" if speed.peak_bytes is None else f"{speed.peak_bytes / 2**30:.3g} GiB"
            yield [
                *named,
                what,
                f"{speed.images}",
                f"{speed.ms:.4g}",
                f"{speed.images_per_second:.4g}",
                rate(speed.gflops),
                of_peak,
                memory,
            ]
            named = ["", ""]
