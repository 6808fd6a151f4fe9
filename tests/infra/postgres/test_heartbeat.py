"""Heartbeats, and the positions of their commits."""

from __future__ import annotations

import psycopg
import pytest

from infra.postgres.control import ensure_control_schema
from infra.postgres.heartbeat import beat
from schemas.positions import parse_lsn
from tests.conftest import Database

pytestmark = pytest.mark.stack


def test_position_is_after_earlier_commits_and_not_after_its_own(database: Database) -> None:
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"])
    slot = f"s_{database.name}"
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    beats = []
    for _ in range(3):
        before = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert before is not None
        beats.append(beat(connection))
        assert parse_lsn(before[0]) <= beats[-1]
    told = connection.execute(
        "SELECT lsn::text FROM pg_logical_slot_get_changes(%s, NULL, NULL) WHERE data ~ 'COMMIT'", (slot,)
    )
    commits = [parse_lsn(lsn) for (lsn,) in told]
    assert len(commits) == 3
    assert all(at <= commit for at, commit in zip(beats, commits, strict=True))
    assert all(commit < at for commit, at in zip(commits, beats[1:], strict=False))


def test_heartbeats_share_one_row(database: Database) -> None:
    first, second = database.connect(), database.connect()
    ensure_control_schema(first, "main", ["gitlab_main"])
    for connection in (first, second, first):
        beat(connection)
    assert first.execute("SELECT count(*) FROM headrace.heartbeat").fetchone() == (1,)
    with first.transaction():
        first.execute("LOCK TABLE headrace.heartbeat")
        second.execute("SET lock_timeout = '1ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            beat(second)
