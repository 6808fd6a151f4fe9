"""Snapshots as a large installation has them: many migrations and databases, and long texts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from consumers.operations.overview.status_models import STATES, PartitionStatus, SnapshotStatus, State, TableStatus
from consumers.web.documents import Snapshot, TopicStatus, Verified, WatchedMigration, WatchedSource

LONGEST = 63
"""The characters of a name (infra.settings.section.NAME_PATTERN)."""
_AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def long_name(kind: str, number: int) -> str:
    """Return a name of the greatest length, without a place to break it."""
    return f"{kind}{number:02}_".ljust(LONGEST, "x")


def migration(name: str, database: str, state: State, text: str) -> WatchedMigration:
    """Return a migration in which everything that may be a text is `text`."""
    return WatchedMigration(
        name=name,
        gitlab_schema=database,
        database=database,
        run=1,
        state=state,
        paused=state == "paused",
        complete=state == "complete",
        applied=123_456_789,
        skipped=12_345_678,
        skip_reasons={text: 7},
        dead_letters=1_234,
        given_up=1 if state == "given_up" else 0,
        reported=0,
        reached={},
        remaining=None,
        remaining_estimated=False,
        rate=98_765.4,
        eta_seconds=123_456.0,
        members=[text],
        throttled_by=text if state == "throttled" else None,
        partitions=[
            PartitionStatus(topic=f"headrace.{database}.t", partition=0, offset=5, end_offset=9, consumer=text)
        ],
        failed=text if state == "failed" else None,
        verified=Verified(at=_AT, remaining=1_234_567),
    )


def source(name: str, text: str) -> WatchedSource:
    """Return a source that copies a table while its slot is about to be lost."""
    table = TableStatus(table=text, rows=12_345_678, chunks_done=3, chunks=1_234, stopped=None)
    return WatchedSource(
        name=name,
        slot=f"headrace_{name}"[:LONGEST],
        lsn="16/B374D848",
        lag_bytes=123_456_789,
        lag_seconds=4_321.0,
        slot_status="unreserved",
        retained_bytes=98_765_432_100,
        lost_in_seconds=1_234,
        waits_for=[text],
        snapshot=SnapshotStatus(table=text, chunks_done=3, chunks=1_234),
        snapshot_throttled_by=text,
        snapshot_max_mb_per_second=2.5,
        left_bytes=1_234_567_890,
        retained_limit_bytes=100_000_000_000,
        tables=2,
        tables_done=1,
        copying=[table, TableStatus(**{**dict(table), "table": f"public.{text}", "stopped": text})],
    )


def snapshot(migrations: Sequence[WatchedMigration], text: str, **fields: Any) -> str:
    """Return the JSON of a snapshot; each database of the migrations is a source with one topic."""
    databases = sorted({one.database for one in migrations})
    made = Snapshot(
        at=_AT,
        version="1.2.3",
        prefix="headrace",
        problems=[text],
        migrations=list(migrations),
        sources=[source(name, text) for name in databases],
        topics=[
            TopicStatus(name=f"headrace.{name}.t", events=123_456_789, rate=12.5, sources=[name]) for name in databases
        ],
    )
    return made.model_copy(update=fields).model_dump_json()


def many(databases: int, migrations: int, text: str) -> str:
    """Return as many migrations in as many databases, in all states, with the longest names."""
    made = [
        migration(
            long_name("migration_", number),
            long_name("database_", number % databases),
            STATES[number % len(STATES)],
            text,
        )
        for number in range(migrations)
    ]
    return snapshot(made, text, prefix=long_name("prefix_", 0))
