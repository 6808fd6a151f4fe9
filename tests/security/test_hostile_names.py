"""Names are whatever somebody chose: none of them is a command to a terminal, a line of the log, or markup."""

from __future__ import annotations

import io
import json
import sys

import pytest

from consumers.commands import display
from infra.cli.advice import Advice
from infra.service import log
from schemas.errors import HeadraceError, printable

HOSTILE = "public.t\x1b]0;owned\x07\x1b[2J\r\nheadrace: error: forged \u202e[red]x[/blink]\x9b1m"


def is_harmless(shown: str) -> bool:
    return all(each.isprintable() or each == "\n" for each in shown)


def test_the_name_would_do_harm() -> None:
    assert not is_harmless(HOSTILE)
    assert HOSTILE.count("\n") == 1


def test_an_error_is_one_line_of_printable_characters() -> None:
    said = str(HeadraceError(f"table {HOSTILE} is stopped", remedy="look at it"))
    assert is_harmless(said)
    assert "\n" not in said
    assert r"public.t\x1b]0;owned" in said, "and it still says which"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_of_the_log_is_one_line(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    log.configure(json=as_json)
    log.get(table=HOSTILE).warning("stopped", reason=HOSTILE)
    shown = written.getvalue()
    assert shown.count("\n") == 1
    assert "\x9b" not in shown
    assert "\x1b]0" not in shown, "of escape sequences there are the log's own colours, at most"
    assert "\x1b[2J" not in shown
    if as_json:
        assert json.loads(shown)["table"] == HOSTILE, "whole, for a program"


def test_status_and_dry_run_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
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
            "parked": {HOSTILE: 1},
        }
    )
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    assert "[red]" in shown.replace("\n", ""), "brackets are no markup"


def test_what_check_advises_keeps_its_lines() -> None:
    shown = str(Advice("main", HOSTILE, ("    " + HOSTILE,), HOSTILE))
    assert is_harmless(shown)
    assert len(shown.splitlines()) == 3
    assert shown.splitlines()[1].startswith("        public.t"), "a plan keeps its indentation"


def test_what_can_be_shown_stays_as_it_is() -> None:
    assert printable("Größe 大 “x”") == "Größe 大 “x”"
