"""`headrace history`: what a narrow terminal shows of it, and the times that it takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from infra.state.history import HistoryEntry
from infra.state.history_command import _moment, lines
from schemas.errors import UsageError

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def entry(action: str = "pause", subject: str = "skip_resets", request: UUID | None = None, **values: Any) -> Any:
    given: dict[str, Any] = {"actor": "alice@here", "via": "command", "reason": None, "details": {}, "role": "headrace"}
    return HistoryEntry(
        database="main",
        id=uuid4(),
        at=NOW,
        action=action,
        subject=subject,
        request=request or uuid4(),
        **given | values,
    )


def test_entries_fit_60_columns() -> None:
    shown = list(
        lines(
            [
                entry("replay", details={"run": 2, "start": "beginning", "selected": {"id": 3}}, reason="CHG-7 " * 20),
                entry("resume", via="console", actor="deploy-token"),
            ],
            60,
        )
    )
    assert shown[0] == "2026-01-31 12:00:00Z replay skip_resets (run 2, start"
    assert [line for line in shown if len(line) > 60] == []
    assert shown[-2:] == ["2026-01-31 12:00:00Z resume skip_resets", "  deploy-token (role headrace in main, console)"]


def test_pace_that_is_the_settings_again_says_so() -> None:
    paces = [entry("pace", details={"max_rate": rate, "transaction_ms": None}) for rate in (2.5, None)]
    assert list(lines(paces, 120))[::2] == [
        "2026-01-31 12:00:00Z pace skip_resets (max rate 2.5)",
        "2026-01-31 12:00:00Z pace skip_resets (as in the settings)",
    ]


def test_entries_of_one_command_are_one() -> None:
    command = uuid4()
    retried = [entry("retry", request=command, details={"event": str(n), "outcome": "applied"}) for n in range(1_200)]
    moved = [entry("switchover", "gitlab_ci", command, details={"step": step}) for step in ("close", "open")]
    found = entry("switchover", "gitlab_ci", details={"step": "promote", "done_before": True})
    assert list(lines([*retried, *moved, entry("retry", details={"taken_up": 4}), found], 120)) == [
        "2026-01-31 12:00:00Z retry skip_resets (1,200 applied)",
        "  alice@here (role headrace in main)",
        "2026-01-31 12:00:00Z switchover gitlab_ci (1 close, 1 open)",
        "  alice@here (role headrace in main)",
        "2026-01-31 12:00:00Z retry skip_resets (taken up 4)",
        "  alice@here (role headrace in main)",
        "2026-01-31 12:00:00Z switchover gitlab_ci (step promote, done before)",
        "  alice@here (role headrace in main)",
    ]


def test_control_characters_are_escaped() -> None:
    shown = "\n".join(lines([entry(subject="a\x1b[31m", actor="b\nc", reason="\x07")], 80))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"pause a\x1b[31m" in shown


def test_since_is_an_age_or_a_time() -> None:
    assert _moment("7d", NOW) == NOW - timedelta(days=7)
    assert _moment("90s", NOW) == NOW - timedelta(seconds=90)
    assert _moment("2026-01-31", NOW) == datetime(2026, 1, 31, tzinfo=UTC)
    assert _moment("2026-01-31T12:00:00+02:00", NOW) == NOW - timedelta(hours=2)
    for wrong in ("7", "yesterday", "7d7"):
        with pytest.raises(UsageError, match=f"--since {wrong} is no time"):
            _moment(wrong, NOW)
