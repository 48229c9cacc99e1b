"""A recipe's tables as plain values that remember where each was written, and how tables merge."""

from __future__ import annotations

from typing import Any

import attrs

from cdmkit.recipe.faults import Fault, KeyPath, Origin, Problem


@attrs.frozen
class Node:
    """A value of a TOML file: a dict of nodes, a list of nodes, or a scalar."""

    value: Any
    origin: Origin

    @classmethod
    def of(cls, value: Any, source: str, places: dict[KeyPath, tuple[int, int]], path: KeyPath = ()) -> Node:
        """The tree of a value read from `source`; `places` gives lines and columns, none for what is not of a file."""
        if isinstance(value, dict):
            value = {key: cls.of(item, source, places, (*path, key)) for key, item in value.items()}
        elif isinstance(value, list):
            value = [cls.of(item, source, places, (*path, index)) for index, item in enumerate(value)]
        line, column = places.get(path, (0, 0))
        return cls(value, Origin(source, line, column, path))

    @property
    def is_table(self) -> bool:
        """Whether it is a table."""
        return isinstance(self.value, dict)

    def plain(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def without(self, *keys: str) -> Node:
        """The table without some keys."""
        return attrs.evolve(self, value={key: node for key, node in self.value.items() if key not in keys})

    def fault(self, problem: Problem) -> Fault:
        """A problem with the place of the deepest value on its path that exists."""
        node, rest = self, problem.path
        while rest and (inner := node.step(rest[0])) is not None:
            node, rest = inner, rest[1:]
        return Fault(node.origin, node.origin.path + rest, problem.text, problem.setup)

    def step(self, part: str | int) -> Node | None:
        """The value of a table's key or at a list's index, or None."""
        items = dict(enumerate(self.value)) if isinstance(self.value, list) else self.value
        node: Node | None = items.get(part) if isinstance(items, dict) else None
        return node


def merge(under: Node, over: Node) -> Node:
    """`over` laid on `under`: tables merge key by key, anything else replaces. So does a table whose `type` is another component's."""
    if not (under.is_table and over.is_table) or _differ(under.step("type"), over.step("type")):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, over.origin)


def _differ(one: Node | None, other: Node | None) -> bool:
    return one is not None and other is not None and one.value != other.value
