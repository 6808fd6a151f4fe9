"""The help of commands on a terminal."""

from __future__ import annotations

import sys

import pytest
import typer

import headrace


@pytest.mark.parametrize(
    ("variables", "colors"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_help_is_colored_on_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], colors: bool
) -> None:
    for name, value in {"TERM": "xterm-256color", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for words in (["--help"], ["pause", "--help"], ["dead-letters", "--help"], ["dead-letters", "list", "--help"]):
        monkeypatch.setattr(sys, "argv", ["headrace", *words])
        with pytest.raises(SystemExit):
            headrace.main()
        shown = capsys.readouterr().out
        assert (typer.style("Options:", bold=True) in shown) is colors, words
        assert (typer.style("--help", fg="cyan") in shown) is colors, words
        assert "Show this message and exit." in shown
        assert ("\x1b[" in shown) is colors, words
