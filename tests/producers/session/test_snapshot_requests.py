"""Requests to re-snapshot a table: whose are accepted, and how an impossible one is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import PATIENCE, until
from infra.postgres.connect import connect
from infra.postgres.control import ensure_control_schema
from infra.state.snapshot_requests import RequestRefused, SnapshotRequest, send_request
from producers.session.snapshot_requests import require_keys
from producers.snapshot.resnapshot_rules import KeyRange
from producers.source.tables import captured_tables
from producers.stream.connection import ReplicationStream
from tests.conftest import Database
from tests.producers.folding import ops, states
from tests.producers.processes import ROOT, SCHEMA, write_settings
from tests.producers.sources import Source, copy_all, running

NewSource = Callable[..., Source]
ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 20) i"


@pytest.fixture
def stranger(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A session of a role without any grant."""
    admin = database.connect()
    role = sql.Identifier(f"stranger_{database.name}")
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    try:
        dsn = make_conninfo(database.dsn, user=f"stranger_{database.name}", password="x")
        with psycopg.connect(dsn, autocommit=True) as connection:
            yield connection
    finally:
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


MESSAGES = (
    ("headrace.snapshot", '{"table": "public.t", "anew": true}'),
    ("headrace.snapshot", '{"table": "public.t", "first": ["no number"]}'),
    ("headrace.snapshot", '{"table": "public.t", "first": ["1", "2"]}'),
    ("headrace.snapshot", '{"table": "public.t", "first": ["a\\u0000b"]}'),
    ("headrace.snapshot", "no request"),
    ("headrace", "-1"),
    ("headrace", ""),
    ("", "\u00e9" * 1000),
)
"""The former formats of a request and of a heartbeat."""


@pytest.mark.stack
def test_messages_of_other_roles_change_nothing(new_source: NewSource, stranger: psycopg.Connection[Any]) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    emit = "SELECT pg_logical_emit_message(%s, %s, %s::text)"
    with running(source) as producer:
        producer.caught_up()
        for transactional in (True, False):
            for prefix, content in MESSAGES:
                stranger.execute(emit, (transactional, prefix, content))
        producer.caught_up()
    for prefix, content in MESSAGES:
        stranger.execute(emit, (True, prefix, content))
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 20}


@pytest.mark.stack
def test_messages_of_other_roles_are_not_sent_at_all(
    new_source: NewSource, stranger: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message may have a gigabyte, which would be in memory at every start."""
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    copy_all(source)
    largest = 0

    def take(self: Any, frames: list[Any], *arguments: Any) -> None:
        nonlocal largest
        original(self, frames, *arguments)
        largest = max([largest, *(len(frame) for frame in frames if isinstance(frame, bytes))])

    original = ReplicationStream._take
    monkeypatch.setattr(ReplicationStream, "_take", take)
    stranger.execute("SELECT pg_logical_emit_message(true, 'headrace', repeat('x', 20000000))")
    copy_all(source)
    assert 0 < largest < 1_000_000


@pytest.mark.stack
def test_other_roles_may_not_write_producers_tables(database: Database, stranger: psycopg.Connection[Any]) -> None:
    admin = database.connect()
    admin.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    admin.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC")
    ensure_control_schema(admin, "main", ["gitlab_main"])
    for statement in (
        "INSERT INTO headrace.snapshot_requests (\"table\") VALUES ('public.t')",
        "UPDATE headrace.schema_ownership SET owner = 'other'",
        "UPDATE headrace.database SET name = 'other'",
        "INSERT INTO headrace.heartbeat (beaten_at) VALUES (now())",
        "TRUNCATE headrace.heartbeat",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute(statement.encode())


NO_KEYS = {
    "a value that is no number": (("no number",), "a key was given that does not match its columns' types"),
    "a number too large": (("99999999999",), "a key was given that does not match its columns' types"),
    "two values": (("1", "2"), r"a key with 2 value\(s\) was given, but the key of public\.t is \(id\)"),
    "no value": ((), r"a key with 0 value\(s\) was given"),
    "a long one": (("1" * 300_000,), "a key of more than 262144 bytes"),
}


@pytest.mark.stack
def test_key_that_does_not_match_is_refused_without_waiting_for_the_table_lock(new_source: NewSource) -> None:
    source = new_source(SCHEMA, "public.t")
    (table,) = captured_tables(source.connection, "main", source.settings.database("main"), source.settings.prefix)
    dsn = source.settings.database("main").dsn.get_secret_value()
    with psycopg.connect(dsn) as locking, connect(dsn, name="test") as connection:
        locking.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        connection.execute("SET lock_timeout = '1ms'")
        require_keys(connection, table, SnapshotRequest(table="public.t", first=("1",), last=("2",)))
        for key, reason in NO_KEYS.values():
            for request in (
                SnapshotRequest(table="public.t", first=key),
                SnapshotRequest(table="public.t", last=key),
            ):
                with pytest.raises(RequestRefused, match=reason):
                    require_keys(connection, table, request)


@pytest.mark.stack
def test_request_keys_are_normalized_by_the_server(new_source: NewSource) -> None:
    """Adjacent ranges are joined by comparing these texts."""
    source = new_source("CREATE TABLE t (id uuid, n int, PRIMARY KEY (id, n))", "public.t")
    (table,) = captured_tables(source.connection, "main", source.settings.database("main"), source.settings.prefix)
    low, high = "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "b0eebc999c0b4ef8bb6d6bb9bd380a11"
    asked = SnapshotRequest(table="public.t", first=(low, " 007"), last=(high, "+8"))
    whole = KeyRange(("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "7"), ("b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "8"))
    assert require_keys(source.connection, table, asked) == whole
    only_last = asked.model_copy(update={"first": None})
    assert require_keys(source.connection, table, only_last) == KeyRange(None, whole.last)
    only_first = asked.model_copy(update={"last": None})
    assert require_keys(source.connection, table, only_first) == KeyRange(whole.first, None)
    assert require_keys(source.connection, table, SnapshotRequest(table="public.t")) == KeyRange()


@pytest.mark.long
@pytest.mark.stack
def test_request_that_cannot_be_done_is_refused_and_the_source_continues(new_source: NewSource, tmp_path: Path) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}; CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)", "public.t")

    def refused() -> str | None:
        stream = source.recorded().stream
        assert stream is not None
        return stream.refused_request

    insert = 'INSERT INTO headrace.snapshot_requests ("table", first_key, from_scratch) VALUES'
    oid = source.connection.execute("SELECT 't'::regclass::oid::text").fetchone()
    assert oid is not None
    with running(source) as producer:
        producer.caught_up()
        assert refused() is None
        source.connection.execute(
            f"{insert} ('public.t', '{{x}}', false), ('public.t', '{{1,2}}', false), ('public.t', '{{NULL}}', false),"
            f" ('public.t', '{{{{1}},{{2}}}}', false), ('t', NULL, true), ('{oid[0]}', NULL, true), ('', NULL, true)"
        )
        producer.caught_up()
        assert refused() == "cannot re-snapshot table : it is not captured here"
    source.connection.execute(f"{insert} ('other.t', NULL, true)")
    copy_all(source)
    assert refused() == "cannot re-snapshot table other.t: it is not captured here"
    config = write_settings(source.settings, tmp_path / "headrace.toml")
    command = [sys.executable, "-m", "headrace", "check", "--config", str(config)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "cannot re-snapshot table other.t: it is not captured here" in shown.stdout
    assert "Nothing was changed. Correct the request and repeat it" in shown.stdout
    assert states(source.require_equal("public.t")) == {"r": 20}
    with running(source) as producer:
        send_request(source.connection, SnapshotRequest(table="public.t", first=("19",)))
        producer.caught_up()
        until(lambda: not source.state().snapshots["public.t"].under_way, "the range")
    assert refused() is None
    records = source.require_equal("public.t")
    assert [ops(records, id=key) for key in (18, 19, 20)] == [["r"], ["r", "r"], ["r", "r"]]
