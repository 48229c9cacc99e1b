"""Recipes: TOML text to a frozen tree in one pass, with every fault at its line, and back to text."""

from cdmkit.recipe.faults import Fault, Faults, RecipeFaults, SetupFaults, dotted
from cdmkit.recipe.model import Data, Recipe, Requires, Sample, Validation
from cdmkit.recipe.reading import read, read_stage
from cdmkit.recipe.write import diff, loose, ordering, table_to_toml, to_table, to_toml, without

__all__ = [
    "Data",
    "Fault",
    "Faults",
    "Recipe",
    "RecipeFaults",
    "Requires",
    "Sample",
    "SetupFaults",
    "Validation",
    "diff",
    "dotted",
    "loose",
    "ordering",
    "read",
    "read_stage",
    "table_to_toml",
    "to_table",
    "to_toml",
    "without",
]
