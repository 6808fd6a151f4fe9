"""Prints tables that fit every terminal: where a row does not fit, its cells are one below the other."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from infra.service.terminal import colored
from schemas.errors import printable

_UNLIMITED: Final = 10_000
"""A width in which every table fits, to measure it."""


def console(*, stderr: bool = False, **arguments: Any) -> Console:
    """Return a console for standard output, or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    # With no_color alone, rich still writes bold.
    return Console(stderr=stderr, color_system="auto" if colored(stream) else None, **arguments)


def show_table(
    on: Console, title: str | None, headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print rows of plain text as a table, or one below the other where it would not fit; no cell is truncated.

    `right` are the headings of columns that are justified right.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    if Measurement.get(on, on.options.update(max_width=_UNLIMITED), table).maximum <= on.width:
        on.print(table)
        return
    if title is not None:
        on.print(title, style="italic")
    for row in rows:
        for line in _folded(headings, row, on.width):
            on.print(line, soft_wrap=True, highlight=False, markup=False)


def _folded(headings: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    """Yield the first cell, then the others with their headings; words stay whole, to be copied."""
    yield printable(row[0])
    cells = [f"{heading} {printable(cell)}" for heading, cell in zip(headings[1:], row[1:], strict=True) if cell]
    yield from textwrap.wrap(
        ", ".join(cells),
        width,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
