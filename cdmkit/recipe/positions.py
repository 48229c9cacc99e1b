"""Line and column of every key and list item of a TOML text, which no TOML reader tells.

The text is known to be valid: the reader has accepted it. So a few patterns find their way, and nothing is checked again.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import tomli

from cdmkit.recipe.faults import KeyPath

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+)[ \t]*""")
_STRING = re.compile(r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*\'''', re.DOTALL)
_BARE = re.compile(r"[^,\]}#\n]*")


def positions(text: str) -> dict[KeyPath, tuple[int, int]]:
    """The (line, column) of every key path of a valid TOML text, both from 1: of the key, or of the value where it is a list's item."""
    text = text.replace("\r\n", "\n")
    scanner = _Scanner(text)
    scanner.document()
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    lines = {path: (bisect_right(starts, offset), offset) for path, offset in scanner.found.items()}
    return {path: (line, offset - starts[line - 1] + 1) for path, (line, offset) in lines.items()}


class _Scanner:
    """A place in the text, moving on, and the offsets found so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[KeyPath, int] = {(): 0}
        self.lengths: dict[KeyPath, int] = {}
        """How many tables each array of tables has so far."""

    def document(self) -> None:
        """The whole text: headers and assignments."""
        table: KeyPath = ()
        self._skip()
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._assignment(table)
            self._skip()

    def _skip(self) -> None:
        """Go past blanks, line ends and comments."""
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`: the path of the table that begins."""
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        *parents, (key, offset) = self._keys()
        self.at += brackets
        table: KeyPath = ()
        for parent, start in parents:
            table = (*table, parent)
            self.found.setdefault(table, start)
            if table in self.lengths:
                table = (*table, self.lengths[table] - 1)
        table = (*table, key)
        if brackets == 2:
            self.found.setdefault(table, offset)
            index = self.lengths.get(table, 0)
            self.lengths[table] = index + 1
            table = (*table, index)
        self.found[table] = offset
        return table

    def _keys(self) -> list[tuple[str, int]]:
        """A dotted key, part by part, each with its offset. Stops after it."""
        keys = []
        while match := _KEY.match(self.text, self.at):
            literal = match[1]
            keys.append((next(iter(tomli.loads(f"{literal} = 0"))), match.start(1)))
            self.at = match.end()
            if not self.text.startswith(".", self.at):
                break
            self.at += 1
        return keys

    def _assignment(self, table: KeyPath) -> None:
        """`a.b = value`, up to the end of the value."""
        for key, offset in self._keys():
            table = (*table, key)
            self.found.setdefault(table, offset)
        self.at += 1
        self._skip()
        self._value(table)

    def _value(self, path: KeyPath) -> None:
        """A value of any type, up to its end."""
        match self.text[self.at]:
            case "[":
                self._items(path, "]")
            case "{":
                self._items(path, "}")
            case opening:
                pattern = _STRING if opening in "\"'" else _BARE
                found = pattern.match(self.text, self.at)
                self.at = found.end() if found else self.at

    def _items(self, path: KeyPath, closing: str) -> None:
        """A list or an inline table, up to and with its closing bracket."""
        self.at += 1
        self._skip()
        index = 0
        while self.text[self.at] != closing:
            if closing == "]":
                self.found[(*path, index)] = self.at
                self._value((*path, index))
                index += 1
            else:
                self._assignment(path)
            self._skip()
            if self.text[self.at] == ",":
                self.at += 1
                self._skip()
        self.at += 1
