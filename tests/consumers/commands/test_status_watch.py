"""`status --watch`: in place on a terminal, appended elsewhere, and over when it is stopped."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from consumers.commands.status_watch import watch
from schemas.errors import BrokerUnavailable, UsageError
from tests.consumers.commands.test_display import migration, source

HOME, CLEAR, END_OF_LINE = "\x1b[H", "\x1b[2J", "\x1b[K"


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def rounds(stop: threading.Event, *each: Mapping[str, Any] | Exception) -> Callable[[], Mapping[str, Any]]:
    """Return a function that returns or raises one after the other; with the last one the watch is stopped."""
    left = list(each)

    def gather() -> Mapping[str, Any]:
        found = left.pop(0)
        if not left:
            stop.set()
        if isinstance(found, Exception):
            raise found
        return found

    return gather


def document(name: str, count: int = 1) -> dict[str, Any]:
    return {"migrations": [migration(name=name)] * count, "sources": [source()]}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "100", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def test_terminal_is_redrawn_in_place(terminal: Terminal) -> None:
    stop = threading.Event()
    watch(rounds(stop, document("first"), document("second")), 0, stop, terminal, as_json=False)
    empty, one, other = terminal.getvalue().split(HOME)
    assert empty == CLEAR
    assert "first" in one
    assert "second" in other
    assert all(line.endswith(END_OF_LINE) for line in other.splitlines()[:-1])


def test_more_lines_than_the_screen_has_are_counted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "10")
    stop = threading.Event()
    watch(rounds(stop, document("first", count=20)), 0, stop, terminal, as_json=False)
    _, drawn = terminal.getvalue().split(HOME)
    lines = drawn.splitlines()
    assert len(lines) == 10, "nine lines, and what clears the rest"
    assert "more lines: see `headrace status`" in lines[8]


@pytest.mark.parametrize("dumb", [True, False])
def test_pipe_and_dumb_terminal_are_appended_to(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, dumb: bool
) -> None:
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    written = terminal if dumb else io.StringIO()
    stop = threading.Event()
    watch(rounds(stop, document("first"), document("second")), 0, stop, written, as_json=False)
    assert "\x1b" not in written.getvalue()
    assert written.getvalue().index("first") < written.getvalue().index("second")


def test_json_is_one_document_a_line_and_an_outage_is_one_too(terminal: Terminal) -> None:
    stop = threading.Event()
    watch(rounds(stop, document("a"), BrokerUnavailable("no answer"), document("b")), 0, stop, terminal, as_json=True)
    one, error, other = map(json.loads, terminal.getvalue().splitlines())
    assert (one["migrations"][0]["name"], other["migrations"][0]["name"]) == ("a", "b")
    assert error["error"].startswith("no answer; ")


def test_outage_is_shown_and_a_mistake_ends_it(terminal: Terminal) -> None:
    stop = threading.Event()
    with pytest.raises(UsageError):
        watch(
            rounds(stop, BrokerUnavailable("no answer"), UsageError("wrong"), document("a")),
            0,
            stop,
            terminal,
            as_json=False,
        )
    assert "no answer" in terminal.getvalue()
