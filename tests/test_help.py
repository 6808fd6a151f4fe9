"""The help of every command: an example, and nothing truncated on a narrow terminal; and `--verbose`."""

from __future__ import annotations

import os
import re
import sys

import pytest
from typer.testing import CliRunner

import headrace
from tests.command_tree import paths


def shown(monkeypatch: pytest.MonkeyPatch, *words: str, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(headrace, "_command_line", headrace._command_line.__wrapped__)
    ended = CliRunner().invoke(headrace.app, [*words, "--help"], prog_name="headrace", terminal_width=columns)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.mark.parametrize("words", list(paths()), ids=" ".join)
def test_help_has_an_example_and_fits_60_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, *words, columns=60)
    explained = [line.strip("│ `") for line in text.splitlines() if "Usage: " not in line]
    said = " ".join(" ".join(explained).split())
    assert re.search(rf"headrace {' '.join(words)}( |$|`)" if words else r"headrace demo", said), "an example"
    assert "…" not in text
    assert [line for line in text.splitlines() if len(line) > 60] == []


def test_verbose_is_taken_before_and_after_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *words])
        return headrace._arguments()

    assert arguments("status", "--verbose", "--json") == ["--verbose", "status", "--json"]
    assert arguments("--verbose", "status") == ["--verbose", "status"]
    assert arguments("route", "--", "--verbose") == ["route", "--", "--verbose"]
    assert arguments() == []


def test_verbose_is_the_setting_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOG__LEVEL", "error")
    CliRunner().invoke(headrace.app, ["--verbose", "migrations", "--help"], catch_exceptions=False)
    assert os.environ["HEADRACE_LOG__LEVEL"] == "debug"
