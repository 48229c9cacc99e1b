"""`python -m cdmkit`: the command line."""

from cdmkit.cli import main

main(prog_name="cdmkit")
