"""Finds the line of each key in a TOML document, for messages: tomllib reports values without their places."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from infra.settings.mistakes import Location

_LONGEST: Final = 1_000
"""The most lines that one value may have, so that a document costs no quadratic time."""


@lru_cache(maxsize=2)  # a file's text is asked for each of its mistakes and declared migrations
def lines_of(text: str) -> Mapping[Location, int]:
    """Return key → the line of its table or value, from 1, of a valid document; array items have their array's."""
    found: dict[Location, int] = {}
    table: Location = ()
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        statement, length = _statement(lines, at)
        if lines[at].lstrip().startswith("["):
            table = next(_paths(statement), ())
            paths = [table]
        else:
            paths = [(*table, *path) for path in _paths(statement)]
        for path in paths:
            for depth in range(1, len(path) + 1):
                found.setdefault(path[:depth], at + 1)
            # A table that was implied before has its own line now.
            if path == table:
                found[path] = at + 1
        at += length
    return found


def line_of(lines: Mapping[Location, int], location: Location) -> int | None:
    """Return the line of the key, or of the nearest table around it; None if the document has neither."""
    for depth in range(len(location), 0, -1):
        if location[:depth] in lines:
            return lines[location[:depth]]
    return None


def _statement(lines: list[str], at: int) -> tuple[dict[str, Any], int]:
    """Return the statement that begins at a line, and how many lines it has: as many as it needs to be valid."""
    for length in range(1, min(_LONGEST, len(lines) - at) + 1):
        try:
            return tomllib.loads("\n".join(lines[at : at + length])), length
        except tomllib.TOMLDecodeError:
            continue
    return {}, 1


def _paths(statement: Mapping[str, Any]) -> Iterator[Location]:
    """Yield the path of each value, and of each empty table."""
    for key, value in statement.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(inner, dict) and inner:
            yield from ((key, *path) for path in _paths(inner))
        else:
            yield (key,)
