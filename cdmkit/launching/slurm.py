"""The stages of one recipe as jobs of Slurm: a script for each, and one that samples when all are trained."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from cdmkit.errors import SetupError
from cdmkit.files import write_text
from cdmkit.launching.group import FINAL, cdmkit
from cdmkit.launching.place import jobs_folder

NOTICE = 120
"""Seconds before the end of a job's time in which it can finish a step and save."""

SAMPLING = "sampling"
"""What the job that samples is called."""

_CARDS = {"gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "gres"}

_SCRIPT = """\
#!/bin/bash
{options}

export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi

# After a crash again, on all nodes at once. Not after a fault of the user's, nor when stopped.
for start in $(seq 0 {restarts}); do
  srun --kill-on-bad-exit=0 {command}
  code=$?
  case $code in {final}) break ;; esac
done
if [ $code -eq 75 ]; then  # stopped after saving, since the time is over or someone else needs the nodes
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


@attrs.frozen(kw_only=True)
class Wishes:
    """What the jobs ask Slurm for."""

    devices: int = 1
    """On each node, a process for each."""
    nodes: int = 1
    restarts: int = 0
    """How often a job starts again after a crash."""
    options: Mapping[str, str | None] = attrs.field(factory=dict)
    """Options of sbatch by their long names; None where one has no value. They win over ours."""


@attrs.frozen
class Job:
    """A job: of a stage, or the one that samples after all others."""

    name: str
    folder: Path
    """Where it logs to."""
    script: str
    last: bool = False

    def log(self, number: str) -> str:
        """The file that it logs to. number: the job's id."""
        return str(self.folder / f"{self.name}-{number}.log")


def jobs(recipe: str, run: Path, stages: Sequence[str], wishes: Wishes, *, sample: bool) -> list[Job]:
    """A job for each of `stages`, and with `sample` a last one that depends on all of them.

    recipe: its name; the jobs read it at `recipe_for(run)`. The last job has one device, since a cascade is sampled by one process.
    """
    common = [str(recipe_for(run)), "--run", str(run)]
    shared = ["--devices", str(wishes.devices), "--restarts", "0"] if wishes.devices * wishes.nodes > 1 else []
    shared += ["--nodes", str(wishes.nodes)] if wishes.nodes > 1 else []
    made = [_job(recipe, stage, run, wishes, [*common, "--stage", stage, *shared]) for stage in stages]
    if sample:
        alone = attrs.evolve(wishes, devices=1, nodes=1)
        last = _job(recipe, SAMPLING, run, alone, [*common, "--resume"])
        made.append(attrs.evolve(last, last=True))
    return made


def recipe_for(run: Path) -> Path:
    """Where the recipe lies that the jobs of a run read: beside their logs, so that it is theirs alone."""
    return jobs_folder(run) / "recipe.toml"


def keep(recipe: str, path: Path) -> None:
    """Write the recipe, a TOML text, for jobs. Raises SetupError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, recipe)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error}. Choose another place for the run by --run.") from error


def _job(recipe: str, name: str, run: Path, wishes: Wishes, arguments: Sequence[str]) -> Job:
    folder = jobs_folder(run)
    options: dict[str, str | None] = {
        "job-name": f"{recipe}-{name}",
        "output": f"{str(folder).replace('%', '%%')}/{name}-%j.log",
        "open-mode": "append",
        "nodes": str(wishes.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(wishes.devices),
        "signal": f"USR1@{NOTICE}",
        "requeue": None,
    }
    if wishes.options.keys() & _CARDS:
        del options["gpus-per-node"]
    lines = (
        f"#SBATCH --{key}" + ("" if value is None else f"={shlex.quote(value)}") for key, value in {**options, **wishes.options}.items()
    )
    script = _SCRIPT.format(
        options="\n".join(lines),
        command=shlex.join(cdmkit("run", *arguments)),
        restarts=wishes.restarts,
        final="|".join(map(str, (0, *FINAL))),
    )
    return Job(name, folder, script)


def submit(jobs: Sequence[Job]) -> list[str]:
    """Hand the jobs to Slurm; their ids. Raises SetupError, naming those that were submitted, where one cannot be."""
    ids: list[str] = []
    for job in jobs:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)  # Slurm makes no folders
            done = subprocess.run(sbatch(job, ids), input=job.script, capture_output=True, text=True, check=True)  # noqa: S603
        except FileNotFoundError as error:
            raise SetupError("there is no sbatch here: call this where jobs of Slurm are submitted, or see them by --dry-run") from error
        except (OSError, subprocess.CalledProcessError) as error:
            why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
            before = f". The jobs before it are submitted: cancel them by `scancel {' '.join(ids)}`" if ids else ""
            raise SetupError(f"the job {job.name!r} could not be submitted: {why}{before}") from error
        ids.append(done.stdout.strip().partition(";")[0])
    return ids


def sbatch(job: Job, ids: Sequence[str]) -> list[str]:
    """What submits a job, given its script. ids: those of the jobs before it."""
    if not job.last:
        return ["sbatch", "--parsable"]
    return ["sbatch", "--parsable", f"--dependency=afterok:{':'.join(ids)}", "--kill-on-invalid-dep=yes"]
