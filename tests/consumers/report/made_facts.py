"""Facts of a run that was never made."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from consumers.contract.counting import Count
from consumers.report.facts import Facts, Sample

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def sample(minutes: float, events: int, dead_letters: int = 0) -> Sample:
    return Sample(at(minutes), events, events - dead_letters, 0, dead_letters)


def made_facts(**values: Any) -> Facts:
    """Return the facts of a complete run of ten minutes, with other `values`."""
    facts = Facts(
        name="skip_resets",
        database="main",
        gitlab_schema="gitlab_main",
        tables=("public.container_repositories",),
        run=1,
        current=True,
        state="complete",
        run_reason="first run",
        declared={"version": 1, "options": {}},
        started=START,
        completed=at(10.5),
        ended=at(60),
        last_progress=at(10),
        now=at(60),
        server_version="18.1",
        last=sample(10, 10_000),
        partitions=4,
        passed=10_000,
        end_sum=10_000,
        samples=[sample(minute, minute * 1_000) for minute in range(1, 10)],
        skip_reasons={},
        throttled=(),
        paused=(),
        failures=(),
        open_dead_letters=(),
        settled_dead_letters=0,
        remaining=Count(0),
        work=None,
        actions=(),
        problems=(),
    )
    return replace(facts, **values)
