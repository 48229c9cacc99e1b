"""The graph of stages: order, lineage, leaves."""

from __future__ import annotations

import pytest

from cdmkit.cascade import Cascade, Stage
from tests.cascade.stages import stage

SMALL, SR8, SR16, WIDE = stage("small"), stage("sr8", "small"), stage("sr16", "sr8", resolution=16), stage("wide", "small", resolution=16)


def names(cascade: Cascade) -> list[str]:
    return [s.name for s in cascade]


def test_parents_stand_before_their_children() -> None:
    """In whatever order a recipe has them: generation by generation, each in the recipe's order."""
    assert names(Cascade.of([SR16, WIDE, SR8, SMALL])) == ["small", "wide", "sr8", "sr16"]
    assert names(Cascade.of([SMALL, SR8, SR16, WIDE])) == ["small", "sr8", "wide", "sr16"]


def test_the_lineage_of_a_stage_starts_at_its_base() -> None:
    """And ends at the stage itself, past no sibling."""
    cascade = Cascade.of([SMALL, SR8, SR16, WIDE])
    assert [s.name for s in cascade.lineage("sr16")] == ["small", "sr8", "sr16"]
    assert [s.name for s in cascade.lineage("wide")] == ["small", "wide"]
    assert cascade.lineage("small") == [SMALL]


def test_leaves_are_the_stages_nothing_comes_after() -> None:
    """A cascade that branches has several."""
    assert [s.name for s in Cascade.of([SMALL, SR8, SR16, WIDE]).leaves()] == ["wide", "sr16"]
    assert Cascade.of([SMALL]).leaves() == [SMALL]


def test_a_stage_knows_its_parent_through_the_cascade() -> None:
    """A base stage has none."""
    cascade = Cascade.of([SMALL, SR8])
    assert cascade.parent(cascade["sr8"]) is SMALL
    assert cascade.parent(SMALL) is None


@pytest.mark.parametrize("stages", [[SR8], [SMALL, stage("a", "b"), stage("b", "a")]], ids=["missing parent", "cycle"])
def test_stages_without_a_way_from_a_base_are_named(stages: list[Stage]) -> None:
    """A missing parent, or a circle."""
    with pytest.raises(ValueError, match=r"without a way from a base stage: (sr8|a, b)$"):
        Cascade.of(stages)
