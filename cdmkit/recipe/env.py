"""`${env:NAME}` and `${env:NAME:-default}` in the strings of a recipe; `$${` is a plain `${`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import attrs

from cdmkit.recipe.faults import Fault
from cdmkit.recipe.tree import Node

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class Environment:
    """The variables a recipe may read, and what came of reading them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.faults: list[Fault] = []
        self.used: dict[str, str] = {}
        """The reference each filled-in value stands for."""

    def expand(self, node: Node) -> Node:
        """The tree with every reference in its strings replaced; faults are kept in `faults`."""
        if isinstance(node.value, dict):
            return attrs.evolve(node, value={key: self.expand(item) for key, item in node.value.items()})
        if isinstance(node.value, list):
            return attrs.evolve(node, value=[self.expand(item) for item in node.value])
        if isinstance(node.value, str) and "${" in node.value:
            return attrs.evolve(node, value=_REFERENCE.sub(lambda match: self._value(match, node), node.value))
        return node

    def secrets(self) -> list[tuple[str, str]]:
        """The filled-in values as messages may show them, each with the reference to show instead. Very short ones would garble a text."""
        shown = {form: name for value, name in self.used.items() for form in (value, json.dumps(value)[1:-1]) if len(value) >= 4}
        return sorted(shown.items(), key=lambda item: -len(item[0]))

    def _value(self, match: re.Match[str], node: Node) -> str:
        if match[1] is None:
            return "${"
        variable = _VARIABLE.fullmatch(match[1])
        if not variable or not match[0].endswith("}"):
            self._fault(
                node, f"{match[0]} is not understood: only ${{env:NAME}} and ${{env:NAME:-default}} are; write $${{ for a plain ${{"
            )
            return ""
        name, default = variable.groups()
        if name not in self.variables:
            if default is None:
                self._fault(node, f"environment variable {name} is not set: set it, or give a default: ${{env:{name}:-default}}")
            return default or ""
        self.used[self.variables[name]] = f"${{env:{name}}}"
        return self.variables[name]

    def _fault(self, node: Node, text: str) -> None:
        self.faults.append(Fault(node.origin, node.origin.path, text))


def escaped(text: str) -> str:
    """A string as it must be written in a recipe to be read as it is."""
    return text.replace("${", "$${")
