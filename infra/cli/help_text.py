"""Formats the help of every command: plain text that fits each terminal, with colors where they may be.

Typer's help with rich would take longer to import than a command needs for all else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from typer._click import HelpFormatter

from infra.service.terminal import colored


class _Formatter(HelpFormatter):
    def write_heading(self, heading: str) -> None:
        self.write(_styled(f"{heading}:", bold=True) + "\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl([(_styled(term, fg="cyan"), text) for term, text in rows], col_max, col_spacing)


class HelpContext(typer.Context):
    """The context of a command whose help this module formats."""

    formatter_class = _Formatter


def _styled(text: str, *, bold: bool | None = None, fg: str | None = None) -> str:
    return typer.style(text, bold=bold, fg=fg) if colored(sys.stdout) else text
