"""Shows the status again and again: in place on a terminal, one after the other in a pipe or file."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from rich.console import Console

from consumers.commands import display
from infra.service.terminal import colored, is_dumb
from schemas.errors import HeadraceError, Unavailable

_HOME: Final = "\x1b[H"
_CLEAR: Final = "\x1b[2J"
_TO_END_OF_LINE: Final = "\x1b[K"
_TO_END: Final = "\x1b[J"


def watch(
    gather: Callable[[], Mapping[str, Any]], seconds: float, stop: threading.Event, out: TextIO, *, as_json: bool
) -> None:
    """Print what `gather` returns every `seconds` until `stop` is set; as JSON one document a line.

    A server that does not answer is shown, and asked again; any other HeadraceError ends it.
    """
    in_place = out.isatty() and not is_dumb() and not as_json
    if in_place:
        out.write(_CLEAR)
    while not stop.is_set():
        try:
            document = gather()
            text = json.dumps(document) if as_json else _drawn(document, out)
        except Unavailable as error:
            text = json.dumps({"error": str(error)}) if as_json else f"{error}\n"
        except HeadraceError:
            if stop.is_set():
                return
            raise
        out.write(_in_place(text) if in_place else f"{text}\n")
        out.flush()
        stop.wait(seconds)


def _drawn(document: Mapping[str, Any], out: TextIO) -> str:
    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=shutil.get_terminal_size().columns,
        force_terminal=colored(out),
        color_system="standard" if colored(out) else None,
    )
    display.show_status(document, console)
    return drawn.getvalue()


def _in_place(text: str) -> str:
    """Return the text with what overwrites the previous one; lines that do not fit the screen are only counted."""
    size = shutil.get_terminal_size()
    lines = text.splitlines()
    if len(lines) > size.lines - 1:
        left = len(lines) - (size.lines - 2)
        lines = [*lines[: size.lines - 2], f"{left} more lines: see `headrace status`"]
    return _HOME + "".join(f"{line}{_TO_END_OF_LINE}\n" for line in lines) + _TO_END
