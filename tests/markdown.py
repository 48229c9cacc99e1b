"""Reading the documentation as a test does: its blocks of code, files to save, commands, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])

_BLOCK = re.compile(r"(?:Save this as `(?P<file>[\w./-]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str
    file: str | None
    """The file that readers are told to save it as."""


def blocks(page: Path, language: str | None = None) -> Iterator[Block]:
    """The blocks of a page in their order (in one language)."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if language in (None, found["language"]):
            yield Block(found["language"], found["text"], found["file"])


def commands(shell: str) -> Iterator[list[str]]:
    """The arguments of every `cdmkit ...` in a block of shell, without variables before it and redirections behind."""
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        if words and words[0].endswith("cdmkit"):
            end = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
            yield words[1:end]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page can say after #, as code hosts make it."""
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Where the links of a page lead, and its pictures lie."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'<img src="([^"]+)"', text)]
