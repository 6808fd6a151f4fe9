"""Decides whether output may have colors and move the cursor: not in a file or a pipe, and as the user wants it.

NO_COLOR is the convention of no-color.org: any value but an empty one.
"""

from __future__ import annotations

import os
from typing import TextIO


def is_dumb() -> bool:
    """Whether the terminal cannot move its cursor."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def colored(stream: TextIO) -> bool:
    """Whether escape sequences for color and style may be written to `stream`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()
