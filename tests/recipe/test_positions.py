"""Where the keys of a TOML text are."""

from __future__ import annotations

from typing import Any

import pytest
import tomli

from cdmkit.recipe.faults import KeyPath
from cdmkit.recipe.positions import positions

EVERYTHING = '''\
# a comment with [brackets] = "and" quotes
a = 1
"quoted key" . b = 'literal # no comment' # comment
c.d.e = """
many = "lines" \\
[not.a.table]
""""
f = \'\'\'raw = [ " \'\'\'
g = [ 1, 2, # comment ]
  [ "x, ]", 4 ],
  { y = 1979-05-27 07:32:00, z = [ ] },
]
h = { i = { j = 1 }, "k.l" = "}" }
m = 1979-05-27 07:32:00Z # a date with a blank

[t . "u v"]
w = -inf
[t.x.y]
[[n]]
o = 1
[[n]]
  [n.p]
  q = true
[[n.r]]
s = "\\"# \\\\"
[[n.r]]
\ts = ""
'''


def paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every key path of a value, however deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(paths(item, (*path, key)) for key, item in items))


def test_every_path_of_the_parsed_text_has_a_position_and_no_other() -> None:
    """The scanner and the reader agree on what there is."""
    assert set(positions(EVERYTHING)) == paths(tomli.loads(EVERYTHING))


def test_a_key_stands_where_its_position_says() -> None:
    """The text at the position of a path that ends in a key starts with this key."""
    lines = EVERYTHING.splitlines()
    for path, (line, column) in positions(EVERYTHING).items():
        if path and isinstance(path[-1], str):
            assert lines[line - 1][column - 1 :].lstrip("\"'").startswith(path[-1]), path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("a",), (2, 1)),
        (("quoted key", "b"), (3, 16)),
        (("g", 3, "z"), (11, 30)),
        (("g", 2, 0), (10, 5)),
        (("h", "k.l"), (13, 22)),
        (("n",), (19, 3)),
        (("n", 0), (19, 3)),
        (("n", 1), (21, 3)),
        (("n", 1, "p", "q"), (23, 3)),
        (("n", 1, "r", 1, "s"), (27, 2)),
    ],
)
def test_positions(path: KeyPath, place: tuple[int, int]) -> None:
    """Positions counted by hand."""
    assert positions(EVERYTHING)[path] == place


def test_a_table_stands_at_its_header_even_where_a_part_of_it_came_first() -> None:
    """`[a]` after `[a.b]` is where a is."""
    assert positions("[a.b]\n[a]\n")["a",] == (2, 2)


def test_windows_line_ends_and_characters_beyond_ascii() -> None:
    """Columns count characters, lines end with either line end."""
    assert positions('a = "é😀"\r\nb = { c = "ü", d = 1 }\r\n')["b", "d"] == (2, 16)


@pytest.mark.parametrize("text", ["", "# nothing", "\n\n", "a=1", "a=[[[]]]", 'a=""""""', 'a="""x"""""', "a=''''''"])
def test_small_texts(text: str) -> None:
    """Nothing and next to nothing."""
    assert set(positions(text)) == paths(tomli.loads(text))
