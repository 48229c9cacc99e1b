"""How long commands take before they do anything: `python benchmarks/startup.py [rounds]`.

Prints the median seconds of `cdmkit --help`, and of `cdmkit validate recipes/imagenet256.toml` beyond those of `import torch`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "recipes" / "imagenet256.toml"


def seconds(*arguments: str) -> float:
    """Wall time of one Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603  (our own commands)
    return time.perf_counter() - began


def main(rounds: int) -> None:
    """Measure in turns, so that a busy machine slows all of them alike."""
    commands = {
        "help": ("-m", "cdmkit", "--help"),
        "validate": ("-m", "cdmkit", "validate", str(RECIPE)),
        "torch": ("-c", "import torch"),
    }
    taken = [{name: seconds(*arguments) for name, arguments in commands.items()} for _ in range(rounds)]
    help_ = statistics.median(each["help"] for each in taken)
    beyond = statistics.median(each["validate"] - each["torch"] for each in taken)
    torch = statistics.median(each["torch"] for each in taken)
    sys.stdout.write(f"cdmkit --help                       {help_:.3f} s\n")
    sys.stdout.write(f"cdmkit validate {RECIPE.name}    {beyond:.3f} s beyond import torch ({torch:.3f} s)\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
