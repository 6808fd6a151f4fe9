"""The line of a key in a TOML document, however it is written."""

from __future__ import annotations

import pytest

from infra.settings.description.lines import line_of, lines_of
from infra.settings.mistakes import Location

TEXT = '''# a comment
prefix = "a"

[databases.main]   # of GitLab
dsn = """
[not.a.table]
x = 1
"""
tables = [
  "public.a",  # ]
  "public.b",
]
snapshot.chunk_rows = 7
keys = { "public.repo" = ["name"] }

[databases."b c"]
[kafka.options]
"sasl.password" = "[x]"
[[several]]
one = 1
[[several]]
two = 2
'''


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("prefix",), 2),
        (("databases",), 4),
        (("databases", "main"), 4),
        (("databases", "main", "dsn"), 5),
        (("databases", "main", "tables"), 9),
        (("databases", "main", "tables", 1), 9),
        (("databases", "main", "snapshot", "chunk_rows"), 13),
        (("databases", "main", "keys", "public.repo"), 14),
        (("databases", "main", "slot"), 4),
        (("databases", "b c"), 16),
        (("kafka", "options", "sasl.password"), 18),
        (("kafka", "partitions"), 17),
        (("several", "two"), 22),
        (("registry", "url"), None),
        ((), None),
    ],
)
def test_line_is_that_of_the_key_or_of_its_table(location: Location, line: int | None) -> None:
    assert line_of(lines_of(TEXT), location) == line


def test_table_that_comes_after_its_subtable_has_its_own_line() -> None:
    lines = lines_of("[a.b]\nx = 1\n[a]\ny = 2\n")
    assert (lines["a",], lines["a", "b"], lines["a", "y"]) == (3, 1, 4)
    assert lines_of("") == {}
