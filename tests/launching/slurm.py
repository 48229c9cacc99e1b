"""Stand-ins for the commands of Slurm. They leave what they are given in $FAKE_SLURM, a line for each word or call."""

from __future__ import annotations

from pathlib import Path

SBATCH = r"""#!/bin/bash
cd "$FAKE_SLURM"
number=$(($(ls *.sh 2>/dev/null | wc -l) + 1))
if [ "$(cat refuse 2>/dev/null)" = $number ]; then echo "Invalid partition" >&2; exit 1; fi
cat > $number.sh
echo "$@" > $number.words
echo "$number;cluster"
"""

SRUN = r"""#!/bin/bash
printf '%s\x1f' "$@" >> "$FAKE_SLURM/calls"
sed -i 's/\x1f$/\n/' "$FAKE_SLURM/calls"
echo "$MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK" > "$FAKE_SLURM/environment"
code=$(head -n 1 "$FAKE_SLURM/codes")
sed -i 1d "$FAKE_SLURM/codes"
exit $code
"""
"""Runs nothing, and ends with the codes that $FAKE_SLURM/codes lists, in turn."""

SRUN_ON_TWO_NODES = r"""#!/bin/bash
shift
SLURM_NODEID=0 "$@" & first=$!
if [[ " $* " == *" --nodes "* ]]; then SLURM_NODEID=1 "$@" & second=$!; fi
trap 'kill -USR1 $first $second' USR1
echo $$ > "$FAKE_SLURM/srun"
highest=0
for task in $first $second; do
  wait $task; code=$?
  while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
  if [ $code -gt $highest ]; then highest=$code; fi
done
exit $highest
"""
"""Runs the command, twice if it has --nodes: this machine is all nodes. Hands SIGUSR1 on, as Slurm does before a job's time is over."""

SCONTROL = r"""#!/bin/bash
case "$1" in
  show) for name in ${FAKE_NODES:-node3 node4}; do echo $name; done ;;
  requeue) echo "$2" >> "$FAKE_SLURM/requeued" ;;
esac
"""


def install(folder: Path, srun: str = SRUN) -> None:
    """Make them executable in a folder."""
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": srun, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
