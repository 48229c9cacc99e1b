"""Names to classes: found, misspelt, missing, offered twice."""

from __future__ import annotations

import pytest

from cdmkit.catalog import Catalog, Offer
from cdmkit.component import component
from cdmkit.errors import RecipeError, SetupError
from cdmkit.kinds import Schedule
from tests.recipe.components import Curve, Distance, Line


@component("line")
class OtherLine(Schedule):
    """Another schedule of the same name."""

    def alpha_bars(self) -> None:  # type: ignore[override]  # never called
        """Nothing."""


OFFERS = [Offer(Line, "one 1.0"), Offer(Curve, "one 1.0"), Offer(Distance, "two 2.0")]


def test_a_name_finds_its_class_within_its_kind() -> None:
    """Names are listed in order."""
    catalog = Catalog.of(OFFERS)
    assert catalog.find("schedule", "line") is Line
    assert catalog.find("loss", "distance") is Distance
    assert catalog.names("schedule") == ["curve", "line"]
    assert catalog.names("backbone") == []


def test_a_misspelt_name_is_the_recipes_fault() -> None:
    """The nearest name is told."""
    with pytest.raises(RecipeError, match=r'^unknown schedule "lime"; did you mean "line"\?$'):
        Catalog.of(OFFERS).find("schedule", "lime")


def test_a_name_of_another_kind_is_the_recipes_fault() -> None:
    """It says which kind it is."""
    with pytest.raises(RecipeError, match=r'^"distance" names a loss, not a schedule$'):
        Catalog.of(OFFERS).find("schedule", "distance")


def test_a_name_nobody_offers_is_not_installed() -> None:
    """What there is, is told."""
    with pytest.raises(SetupError, match=r'^no installed plugin offers schedule "xyz": .* one of: curve, line$'):
        Catalog.of(OFFERS).find("schedule", "xyz")
    with pytest.raises(SetupError, match=r"one of: none$"):
        Catalog.of(OFFERS).find("backbone", "unet")


@pytest.mark.parametrize("name", ["xyz", "lime"])
def test_an_unknown_name_may_be_a_broken_plugins(name: str) -> None:
    """Broken plugins are named, even where a similar name exists; known names are not affected."""
    catalog = Catalog.of(OFFERS, broken=['plugin "p" of three 3.0: ImportError: boom'])
    with pytest.raises(SetupError, match=rf'"{name}".*plugin "p" of three 3\.0: ImportError: boom$'):
        catalog.find("schedule", name)
    assert catalog.find("schedule", "line") is Line


def test_a_name_offered_twice_is_nobodys() -> None:
    """Both owners are named, in whichever order they come; other names go on working."""
    for offers in ([*OFFERS, Offer(OtherLine, "two 2.0")], [Offer(OtherLine, "two 2.0"), *OFFERS]):
        catalog = Catalog.of(offers)
        with pytest.raises(SetupError) as caught:
            catalog.find("schedule", "line")
        assert "one 1.0 (tests.recipe.components.Line)" in str(caught.value)
        assert "two 2.0 (tests.test_catalog.OtherLine)" in str(caught.value)
        assert catalog.find("schedule", "curve") is Curve


def test_one_class_offered_twice_is_no_clash() -> None:
    """Two entry points may lead to one class."""
    assert Catalog.of([*OFFERS, Offer(Line, "two 2.0")]).find("schedule", "line") is Line
