"""Markdown of the program's own texts, which are plain except for code in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

_PAGE: Final = re.compile(r"docs/((?:[\w-]+/)*([\w-]+)\.md)")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that ends with a line break; cells are Markdown, in which a `|` is escaped."""
    return "".join(map(_line, [headings, ["---"] * len(headings), *rows]))


def _line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return "|" + "|".join(f" {cell} " if cell else " " for cell in escaped) + "|\n"


def markdown(text: str) -> str:
    """Return a text with what is no Markdown escaped, and with a link for each page that it names."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        escaped = re.sub(r"[<*]", r"\\\g<0>", parts[place])
        parts[place] = _PAGE.sub(r"[\2](../\1)", escaped).replace("(../reference/", "(")
    return "`".join(parts)
