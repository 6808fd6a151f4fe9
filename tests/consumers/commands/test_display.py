"""The status fits a terminal of 80 columns and shows all details."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from consumers.commands import display
from consumers.compare.judgement import Comparison
from consumers.delivery.dead_letter_topic import Entry
from consumers.ledger.progress import Place
from schemas.positions import Offset


def migration(**changes: Any) -> dict[str, Any]:
    return {
        "name": "status_backfills",
        "gitlab_schema": "registry",
        "database": "main",
        "run": 3,
        "state": "caught_up",
        "applied": 123_456_789,
        "skipped": 1_234,
        "skip_reasons": {"deleted": 1_000, "already up to date": 234},
        "dead_letters": 2,
        "remaining": 9_876_543,
        "rate": 123_456.7,
        "eta_seconds": 360_000.0,
        "members": ["host:1", "host:2"],
        "throttled_by": None,
        "partitions": [{"topic": "t", "partition": 0, "offset": 999, "end_offset": 1000}],
        **changes,
    }


def source(**changes: Any) -> dict[str, Any]:
    return {
        "name": "main",
        "slot": "headrace_main",
        "lsn": "16/B374D848",
        "lag_bytes": 123_456_789,
        "lag_seconds": 12.5,
        "snapshot": {"table": "public.container_repositories", "chunks_done": 12, "chunks": 34},
        **changes,
    }


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that returns the lines of a status on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def show(*migrations: dict[str, Any], sources: tuple[dict[str, Any], ...] = ()) -> list[str]:
        display.show_status({"migrations": list(migrations), "sources": list(sources)})
        return capsys.readouterr().out.splitlines()

    return show


def test_status_fits_80_columns(shown: Any) -> None:
    lines = shown(migration(), sources=(source(),))
    row = next(line for line in lines if line.startswith("status_backfills "))
    assert row.split() == [
        "status_backfills", "caught_up", "99.9%", "123,456,789", "9,876,543", "123,457", "100:00:00",
    ]  # fmt: skip
    assert "…" not in "".join(lines)
    assert len(row) <= 80
    assert any("16/B374D848" in line and "123 MB" in line and "12.5" in line for line in lines)


def test_every_cell_is_whole_at_60_columns(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    odd = {"table": "public.container_repository_[b]_of_a_long_name", "chunks_done": 12, "chunks": 34}
    lines = shown(migration(), sources=(source(), source(name="ci", snapshot=odd)))
    said = " ".join(" ".join(lines).split())
    for cell in (
        "migrations status_backfills state caught_up, read 99.9%, applied 123,456,789, remaining 9,876,543, "
        "events/s 123,457, time left 100:00:00",
        "sources main WAL position 16/B374D848, behind 123 MB, seconds 12.5, "
        "snapshot public.container_repositories 12/34",
        "ci WAL position 16/B374D848, behind 123 MB, seconds 12.5, "
        "snapshot public.container_repository_[b]_of_a_long_name 12/34",
    ):
        assert cell in said
    assert "…" not in said
    assert [line for line in lines if len(line) > 60 and not line.startswith("status_backfills: ")] == []


def test_reasons_are_whole_at_60_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    reason = "the value of column note is longer than the column of the table may have"
    result = {"migration": "m", "database": "main", "events": 1_000, "changes": 10, "remaining": 9}
    display.show_dry_run({**result, "skipped": {reason: 989}, "dead_letters": {reason: 1}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [reason, "  events 989", f"dead letter: {reason}", "  events 1"]


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_escape_sequence_where_none_is_wanted(
    shown: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in "".join(shown(migration(), sources=(source(),)))
    monkeypatch.setenv(variable, value)
    assert "\x1b[" not in "".join(shown(migration(), sources=(source(),)))


def test_status_prints_details_below_the_table(shown: Any) -> None:
    lines = shown(migration(throttled_by="archive: 50 WAL segments are waiting to be archived", state="throttled"))
    assert "status_backfills: throttled by archive: 50 WAL segments are waiting to be archived" in lines
    assert "status_backfills: 2 dead letters; see `headrace dead-letters list status_backfills`" in lines
    assert "status_backfills: 1,234 skipped (already up to date 234, deleted 1,000)" in lines
    assert "status_backfills: run 3 in database main, consumers host:1, host:2" in lines
    assert any("status_backfills: 1 dead letter; see" in line for line in shown(migration(dead_letters=1)))
    given_up = shown(migration(state="given_up", given_up=1_006, reported=2))
    counts = "status_backfills: 1,006 given up, 2 with something to report"
    assert f"{counts}; see `headrace dead-letters list status_backfills`" in given_up
    assert len(next(line for line in given_up if line.startswith("status_backfills "))) <= 80
    moving = shown(migration(reached={"0": "every name", "1": "the names up to a/\tb", "7": "every name"}))
    assert "status_backfills: passed every name of partition 0, 7" in moving
    assert "status_backfills: passed 'the names up to a/\\tb' of partition 1" in moving
    quiet = shown(migration(dead_letters=0, skipped=0, run=0, rate=0.0, eta_seconds=None, remaining=None))
    assert not any(line.startswith("status_backfills:") for line in quiet)


def test_unreachable_database_is_shown_as_error(shown: Any) -> None:
    lines = shown(migration(error="PostgreSQL at h:1/x does not answer"), sources=(source(lag_bytes=None),))
    assert any(line.split()[:2] == ["status_backfills", "unknown"] for line in lines)
    assert "status_backfills: PostgreSQL at h:1/x does not answer" in lines


def test_lost_slot_has_its_own_line(shown: Any) -> None:
    assert "main: slot headrace_main is lost; see `headrace check`" in shown(sources=(source(slot_status="lost"),))
    assert not any("check" in line for line in shown(sources=(source(slot_status="extended"),)))


def test_stream_that_waits_for_a_standby_has_its_own_line(shown: Any) -> None:
    (line,) = (
        line for line in shown(sources=(source(waits_for=["standby slot far does not exist"]),)) if "far" in line
    )
    assert line == "main: its stream waits for standby slot far does not exist; see `headrace check`"


def test_estimate_is_marked_and_broken_migration_is_failed(shown: Any) -> None:
    assert any("~9,876,543" in line for line in shown(migration(remaining_estimated=True)))
    assert not any("~" in line for line in shown(migration(remaining_estimated=False)))
    lines = shown(migration(state="failed", error="x.py:3: class X declares no name"))
    assert any("failed" in line for line in lines)
    assert any("x.py:3: class X declares no name" in line for line in lines)


def test_each_dead_letter_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    display.show_dead_letters("m", [])
    entry = Entry("main", Place("t", 0), Offset(5), 1, "too odd", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), b"")
    display.show_dead_letters("m", [entry])
    display.show_dead_letters("m", [entry], keys={"main/t/0/5": {"path": "a.git", "other": "b\n.git"}})
    line = "main/t/0/5  2023-11-14 22:13:20Z  too odd"
    assert capsys.readouterr().out.splitlines() == [
        "m: no dead letters",
        line,
        f"{line}  path=a.git other='b\\n.git'",
    ]


def test_each_difference_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = Comparison("public.t", "main", rows=9, missing=[{"a": 1, "b": "x"}], extra=[{"a": 2, "b": "y"}])
    found.differing.append({"a": 3, "b": "z"})
    found.columns.append(["name", "note"])
    found.unsettled = 4
    display.show_comparisons([found])
    assert capsys.readouterr().out.splitlines() == [
        "a=1 b=x  missing in the topic",
        "a=2 b=y  extra in the topic",
        "a=3 b=z  differs in name, note",
        "public.t in main: 9 rows compared, 1 missing in the topic, 1 extra, 1 differing;"
        " 4 changed during every comparison",
    ]


def test_dry_run_is_summarised(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    display.show_dry_run(
        {
            "migration": "m",
            "database": "main",
            "events": 1_000,
            "changes": 10,
            "remaining": 9,
            "skipped": {"deleted": 989},
            "dead_letters": {"too odd": 1},
        }
    )
    out = capsys.readouterr().out
    display.show_dry_run(
        {
            "migration": "m",
            "database": "main",
            "events": 9,
            "changes": 9,
            "remaining": 9,
            "skipped": {},
            "dead_letters": {},
        }
    )
    assert len(capsys.readouterr().out.splitlines()) == 1, "no table without rows"
    assert "m: 10 of 1,000 events ask for a change; 9 rows of main would be changed now. Nothing was written, " in out
    assert "`headrace try m --key …` does that for one row" in out
    assert "dead letter: too odd" in out
