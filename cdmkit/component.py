"""Components: named, final, frozen choices whose fields are their options.

    @component("gaussian-blur")
    class GaussianBlur(Augmentation):
        "Blur a share of the low-resolution inputs."

        probability: float = option(0.5, help="share of examples that are blurred", ge=0, le=1)

The class is its own configuration: what a recipe's table says becomes the fields, and the methods do the work. `option` carries what the
recipe reader, the JSON Schema and the documentation need to know of a field, and checks its bounds wherever an instance is made.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, ClassVar, TypeVar, dataclass_transform

import attrs

_KEY = "cdmkit.option"
_MISSING: Any = object()


class Binds(IntEnum):
    """What of a trained stage an option decides. Each decides what those before it do, too."""

    NOTHING = 0
    """Only how it is computed: it may change at any time."""
    TRAINING = 1
    """Which weights are learned, not what they mean: it may change when they are sampled, or trained further."""
    MEANING = 2
    """What weights mean: they are of no use with another value."""


@attrs.frozen
class Option:
    """What is known of one option: its meaning and the range of its value (of each item, where the value is a list)."""

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    binds: Binds = Binds.MEANING

    def check(self, value: object) -> None:
        """Raise ValueError, saying the range, when a number in `value` lies outside it or is not finite."""
        for number in _numbers(value):
            if not self._admits(number):
                raise ValueError(f"{number!r} is out of range: it must be {self.range or 'a finite number'}")

    def _admits(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    @property
    def range(self) -> str:
        """The range in words, empty where every value is admitted."""
        if self.ge is not None and self.ge == self.le:
            return f"{self.ge}"
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)


def option(
    default: Any = _MISSING,
    *,
    help: str,
    factory: Any | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    binds: Binds = Binds.MEANING,
) -> Any:
    """Declare an option: a field with its meaning, its default (required when there is none), its range, and what of a trained stage it
    decides.
    """
    known = Option(help=help, ge=ge, gt=gt, le=le, lt=lt, binds=binds)

    def check(_instance: object, _attribute: object, value: object) -> None:
        known.check(value)

    if factory is not None:
        return attrs.field(factory=factory, metadata={_KEY: known}, validator=check)
    return attrs.field(default=attrs.NOTHING if default is _MISSING else default, metadata={_KEY: known}, validator=check)


def option_of(attribute: attrs.Attribute[Any]) -> Option | None:
    """What is known of a field, or None for a field that is no option (such as a stage's name)."""
    known: Option | None = attribute.metadata.get(_KEY)
    return known


class Component(ABC):
    """A named choice of one kind. Subclass a kind of `cdmkit.kinds`, never this class."""

    __slots__ = ()

    kind: ClassVar[str]
    """The kind's name, as in `cdmkit components KIND`."""

    type_name: ClassVar[str]
    """What `type = "..."` says in a recipe."""


C = TypeVar("C", bound=Component)


@dataclass_transform(frozen_default=True, kw_only_default=True)  # a type checker sees every option as optional
def component(name: str) -> Callable[[type[C]], type[C]]:
    """Make a subclass of a kind the component that recipes call `name`: frozen, keyword-only, compared by value."""

    def decorate(cls: type[C]) -> type[C]:
        made: type[C] = attrs.frozen(kw_only=True)(cls)
        made.type_name = name
        return made

    return decorate


@dataclass_transform(frozen_default=True, kw_only_default=True)  # a type checker sees every option as optional
def table(cls: type[Any]) -> type[Any]:
    """Make a class a plain table of a recipe: options like a component's, but no `type` to choose."""
    made: type[Any] = attrs.frozen(kw_only=True)(cls)
    return made


V = TypeVar("V")


def evolve(value: V, **changes: Any) -> V:
    """A copy of a component or table with some options changed, checked as when it was made."""
    changed: V = attrs.evolve(value, **changes)  # type: ignore[misc]  # made by attrs, though not seen to be
    return changed
