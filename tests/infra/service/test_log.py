"""The log: one JSON object a line for programs, columns for people, on standard error alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import structlog
from pydantic import SecretStr

from infra.service import log
from infra.settings.model import LogSettings


@pytest.fixture(autouse=True)
def _configuration_put_back() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LogSettings(), json=True)
    logger = log.get(**{log.SOURCE: "main"})
    logger.info("table done", **{log.TABLE: "public.projects", log.ROWS: 7})
    logger.warning("two\nlines", **{log.REASON: "a\nb"})
    out, err = capsys.readouterr()
    assert out == ""
    first, second = [json.loads(line) for line in err.splitlines()]
    written = datetime.fromisoformat(first.pop("timestamp"))
    assert written.utcoffset() == timedelta(0)
    assert first == {"event": "table done", "level": "info", "source": "main", "table": "public.projects", "rows": 7}
    assert second["event"] == "two\nlines"


def test_columns_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LogSettings(), json=False)
    log.get(source="main").info("table done", rows=7)
    err = capsys.readouterr().err
    assert "table done" in err
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(err)


def test_json_is_what_a_collected_output_gets(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LogSettings())  # captured: no terminal
    log.get().info("collected")
    assert json.loads(capsys.readouterr().err)["event"] == "collected"


@pytest.mark.parametrize(("level", "lines"), [("", 1), ("debug", 2), ("error", 0), ("nonsense", 1)])
def test_nothing_is_logged_among_what_a_command_prints_even_before_it_has_read_the_settings(
    level: str, lines: int
) -> None:
    program = (
        "from infra.service import log; log.to_standard_error();"
        " log.get().debug('one'); log.get().warning('other'); print('{}')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HEADRACE_LOG__LEVEL": level}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout == "{}\n"
    assert len(ended.stderr.splitlines()) == lines


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LogSettings(level="warning"), json=True)
    log.get().info("quiet")
    log.get().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_secret_that_reaches_the_log_is_not_shown(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    log.configure(LogSettings(), json=as_json)
    log.get(dsn=SecretStr("s3cret")).info("connected", password=SecretStr("s3cret"))
    err = capsys.readouterr().err
    assert "connected" in err
    assert "s3cret" not in err


@pytest.mark.parametrize("as_json", [True, False])
def test_an_exception_is_logged_without_the_values_of_its_variables(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    log.configure(LogSettings(), json=as_json)
    row = "value-of-a-row"
    try:
        raise ValueError(len(row))
    except ValueError:
        log.get().error("failed", exc_info=True)
    err = capsys.readouterr().err
    assert "ValueError: 14" in err
    assert "value-of-a-row" not in err.replace('row = "value-of-a-row"', ""), "no locals, only source lines"


@pytest.mark.parametrize(
    ("variables", "colors"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colors_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], colors: bool
) -> None:
    for name, value in {"TERM": "xterm-256color", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    log.configure(LogSettings())
    log.get(source="main").warning("slow", rows=7)
    assert ("\x1b[" in written.getvalue()) is colors
    assert "slow" in written.getvalue()


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True
