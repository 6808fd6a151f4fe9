"""Hostile names of tables and the like: none is a terminal command, a forged log line, or markup."""

from __future__ import annotations

import io
import json
import sys

import pytest

from consumers.commands import display
from infra.cli.advice import Advice
from infra.service import log
from infra.settings.model import LogSettings
from schemas.errors import HeadraceError, printable

HOSTILE = "public.t\x1b]0;owned\x07\x1b[2J\r\nheadrace: error: forged \u202e[red]x[/blink]\x9b1m"


def is_harmless(shown: str) -> bool:
    return all(each.isprintable() or each == "\n" for each in shown)


def test_name_is_hostile() -> None:
    assert not is_harmless(HOSTILE)
    assert HOSTILE.count("\n") == 1


def test_error_is_one_line_of_printable_characters() -> None:
    output = str(HeadraceError(f"table {HOSTILE} is stopped", remedy="look at it"))
    assert is_harmless(output)
    assert "\n" not in output
    assert r"public.t\x1b]0;owned" in output, "and it still names the table"


@pytest.mark.parametrize("as_json", [True, False])
def test_log_line_is_one_line(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    log.configure(LogSettings(), json=as_json)
    log.get(table=HOSTILE).warning("stopped", reason=HOSTILE)
    shown = written.getvalue()
    assert shown.count("\n") == 1
    assert "\x9b" not in shown
    assert "\x1b]0" not in shown, "the only escape sequences are the log's own colours"
    assert "\x1b[2J" not in shown
    if as_json:
        assert json.loads(shown)["table"] == HOSTILE, "unchanged for a program"


def test_status_and_dry_run_show_names_verbatim(capsys: pytest.CaptureFixture[str]) -> None:
    source = {
        "name": "main",
        "lsn": None,
        "lag_bytes": None,
        "lag_seconds": None,
        "slot": "s",
        "waits_for": [HOSTILE],
        "snapshot": {"table": HOSTILE, "chunks_done": 1, "chunks": 2},
    }
    display.show_status({"migrations": [], "sources": [source]})
    display.show_dry_run(
        {
            "migration": "m",
            "events": 1,
            "changes": 0,
            "remaining": 0,
            "database": "main",
            "skipped": {HOSTILE: 1},
            "dead_letters": {HOSTILE: 1},
        }
    )
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    assert "[red]" in shown.replace("\n", ""), "brackets are no markup"


def test_advice_of_check_keeps_its_lines() -> None:
    shown = str(Advice("main", HOSTILE, ("    " + HOSTILE,), HOSTILE))
    assert is_harmless(shown)
    assert len(shown.splitlines()) == 3
    assert shown.splitlines()[1].startswith("        public.t"), "a plan keeps its indentation"


def test_printable_text_is_unchanged() -> None:
    assert printable("Größe 大 “x”") == "Größe 大 “x”"
