"""Decides whether output may have colors and move the cursor: not in a file or a pipe, and as the user wants it.

NO_COLOR is the convention of no-color.org: any value but an empty one.
"""

from __future__ import annotations

import os
import shutil
from typing import Final, Literal, TextIO

_NARROW: Final = 80
"""Rich's help truncates words that are too long for a column of a narrower terminal."""


def is_dumb() -> bool:
    """Whether the terminal cannot move its cursor."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def help_markup() -> Literal["markdown"] | None:
    """Return Typer's `rich_markup_mode` for this terminal; None is plain text, which is never truncated."""
    return "markdown" if shutil.get_terminal_size().columns >= _NARROW else None


def colored(stream: TextIO) -> bool:
    """Whether escape sequences for color and style may be written to `stream`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()
