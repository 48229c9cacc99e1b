"""Components and tables: bounds wherever an instance is made, frozen values, equality by value."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from cdmkit.component import Option, component, option, option_of, table
from cdmkit.kinds import Schedule


@component("halving")
class Halving(Schedule):
    """alpha_bar falls by a factor at each step."""

    factor: float = option(0.5, help="what is left of alpha_bar after a step", gt=0, lt=1)
    steps: int = option(3, help="T", ge=1, le=10)

    def alpha_bars(self) -> Tensor:
        """Powers of the factor."""
        return torch.tensor(self.factor, dtype=torch.float64) ** torch.arange(self.steps + 1)


@component("other")
class Other(Schedule):
    """The same fields under another name."""

    factor: float = option(0.5, help="as above")
    steps: int = option(3, help="as above")

    def alpha_bars(self) -> Tensor:
        """Any."""
        return torch.tensor([1.0, 0.0], dtype=torch.float64)


@table
class Widths:
    """A table with one option of each shape."""

    widths: tuple[int, ...] = option(help="a list", ge=1)
    pairs: tuple[tuple[int, ...], ...] = option((), help="lists in a list", le=9)
    chosen: bool = option(False, help="a switch", gt=5)
    depth: int | None = option(None, help="may be left out", ge=2)
    extra: list[int] = option(factory=list, help="made anew")
    name: str = attrs.field(default="")


@pytest.mark.parametrize("steps", [1, 10])
def test_a_closed_bound_is_admitted(steps: int) -> None:
    """`ge` and `le` include their ends."""
    assert Halving(steps=steps).steps == steps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 0.0}, "0.0 is out of range: it must be > 0 and < 1"),
        ({"factor": 1.0}, "1.0 is out of range: it must be > 0 and < 1"),
        ({"steps": 0}, "0 is out of range: it must be >= 1 and <= 10"),
        ({"steps": 11}, "11 is out of range: it must be >= 1 and <= 10"),
        ({"factor": math.nan}, "nan is out of range"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(options: dict[str, Any], words: str) -> None:
    """The message names the value and what would be admitted."""
    with pytest.raises(ValueError, match=words):
        Halving(**options)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite_even_without_bounds(number: float) -> None:
    """An option without a range still refuses nan and infinity."""
    with pytest.raises(ValueError, match="it must be a finite number"):
        Other(factor=number)


def test_bounds_hold_for_each_item_of_a_list() -> None:
    """Also in lists of lists."""
    assert Widths(widths=(1, 2), pairs=((9,), (3, 4))).widths == (1, 2)
    with pytest.raises(ValueError, match="0 is out of range: it must be >= 1"):
        Widths(widths=(1, 0))
    with pytest.raises(ValueError, match="10 is out of range: it must be <= 9"):
        Widths(widths=(1,), pairs=((1,), (2, 10)))


def test_bounds_are_for_numbers() -> None:
    """A switch is no number, and neither is an option left out."""
    assert Widths(widths=(), chosen=True).chosen is True
    assert Widths(widths=()).depth is None
    with pytest.raises(ValueError, match="1 is out of range: it must be >= 2"):
        Widths(widths=(), depth=1)


def test_a_component_is_frozen() -> None:
    """No option changes after an instance is made, and no attribute is added."""
    schedule = Halving()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        schedule.factor = 0.25  # type: ignore[misc]  # what the test is about
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        schedule.note = "x"  # type: ignore[attr-defined]  # what the test is about


def test_components_are_compared_by_class_and_value() -> None:
    """Equal options of one class are equal and hash alike; another value or class is not equal."""
    assert Halving(factor=0.25) == Halving(factor=0.25)
    assert hash(Halving(factor=0.25)) == hash(Halving(factor=0.25))
    assert Halving(factor=0.25) != Halving()
    schedules: list[Schedule] = [Halving(), Other()]
    assert schedules[0] != schedules[1]


def test_options_are_given_by_name_only() -> None:
    """Positions mean nothing in a recipe, nor here; a required option must be given, an unknown one is refused."""
    with pytest.raises(TypeError):
        Halving(0.25)  # type: ignore[call-arg]  # what the test is about
    with pytest.raises(TypeError, match="widths"):
        Widths()
    with pytest.raises(TypeError, match="facter"):
        Halving(facter=0.1)  # type: ignore[call-arg]  # what the test is about


def test_a_component_knows_its_name_and_kind() -> None:
    """What a recipe says, and under which key."""
    assert (Halving.type_name, Halving.kind, Other.type_name) == ("halving", "schedule", "other")


def test_a_factory_makes_a_new_default_each_time() -> None:
    """Two tables share no list."""
    assert Widths(widths=()).extra is not Widths(widths=()).extra


def _field(cls: type[Any], name: str) -> attrs.Attribute[Any]:
    return attrs.fields_dict(cls)[name]


def test_what_is_known_of_an_option_is_read_from_its_field() -> None:
    """Meaning and range; a plain field is no option."""
    assert option_of(_field(Halving, "steps")) == Option(help="T", ge=1, le=10)
    assert option_of(_field(Widths, "name")) is None


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (Option(help=""), ""),
        (Option(help="", ge=0), ">= 0"),
        (Option(help="", gt=0, lt=1), "> 0 and < 1"),
        (Option(help="", ge=0.5, le=2), ">= 0.5 and <= 2"),
    ],
)
def test_a_range_is_put_into_words(known: Option, words: str) -> None:
    """As messages and documentation show it."""
    assert known.range == words
