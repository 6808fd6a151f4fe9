"""The stream against a real server."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from infra.postgres import libpq
from infra.postgres.connect import pinned
from producers.source import slots
from producers.stream import messages as m
from producers.stream.connection import ReplicationStream, _connect
from producers.stream.start_command import Streaming, for_replication
from schemas.errors import DatabaseUnavailable
from schemas.events import UNCHANGED
from tests.producers.replicas import PUBLICATION, emit_message, of, prepare, reading

pytestmark = pytest.mark.stack

SMALL_MEMORY = "-c logical_decoding_work_mem=64kB"


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as opened:
        opened.execute("CREATE TABLE t (id bigint PRIMARY KEY, name text, big text)")
        opened.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
        yield opened


def test_every_kind_of_change_is_streamed(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    with connection.transaction():
        connection.execute("INSERT INTO t VALUES (1, 'ä', repeat('x', 5000)), (2, NULL, '')")
        connection.execute("UPDATE t SET name = 'b' WHERE id = 1")
        connection.execute("UPDATE t SET id = 3 WHERE id = 2")
        connection.execute("DELETE FROM t WHERE id = 1")
        connection.execute("TRUNCATE t RESTART IDENTITY CASCADE")
    with reading(dsn, slot, start) as reader:
        messages = reader.until_mark(connection)
    begin, relation, *others, commit = messages
    assert isinstance(begin, m.Begin)
    assert isinstance(commit, m.Commit)
    assert commit.commit_lsn == begin.final_lsn
    assert commit.end_lsn > commit.commit_lsn
    assert commit.commit_ms == begin.commit_ms
    assert isinstance(relation, m.RelationMessage)
    table = relation.relation
    assert table.qualified_name == "public.t"
    assert table.replica_identity == "d"
    assert [each.name for each in table.columns] == ["id", "name", "big"]
    assert table.identity_columns == ("id",)
    # A truncate repeats the same description, which stays the same object.
    assert all(each.relation is table for each in of(others, m.RelationMessage))
    changes = [each for each in others if type(each) is not m.RelationMessage]
    assert changes == [
        m.Insert(table, [b"1", "ä".encode(), b"x" * 5000], None),
        m.Insert(table, [b"2", None, b""], None),
        m.Update(table, None, [b"1", b"b", UNCHANGED], None),
        m.Update(table, [b"2", UNCHANGED, UNCHANGED], [b"3", None, b""], None),
        m.Delete(table, [b"1", UNCHANGED, UNCHANGED], None),
        m.Truncate((table,), True, True, None),
    ]
    kinds = [m.Insert, m.Insert, m.Update, m.Update, m.Delete, m.Truncate]
    assert [type(each) for each in changes] == kinds


def test_replica_identity_full_streams_complete_old_row(
    dsn: str, slot: str, connection: psycopg.Connection[Any]
) -> None:
    start = prepare(connection, slot)
    connection.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    connection.execute("INSERT INTO t VALUES (1, NULL, repeat('x', 5000))")
    connection.execute("UPDATE t SET name = 'b'")
    connection.execute("DELETE FROM t")
    with reading(dsn, slot, start) as reader:
        messages = reader.until_mark(connection)
    (update,) = of(messages, m.Update)
    assert update.relation.replica_identity == "f"
    assert update.relation.identity_columns == ("id", "name", "big")
    assert update.before == [b"1", None, b"x" * 5000]
    # The server omits the value from the new tuple although the old one has it.
    assert update.after in ([b"1", b"b", UNCHANGED], [b"1", b"b", b"x" * 5000])
    (delete,) = of(messages, m.Delete)
    assert delete.before == [b"1", b"b", b"x" * 5000]


def test_changed_table_is_described_again(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("ALTER TABLE t DROP COLUMN name, ADD COLUMN more numeric(10, 2) DEFAULT 1")
    connection.execute("INSERT INTO t VALUES (2)")
    with reading(dsn, slot, start) as reader:
        messages = reader.until_mark(connection)
    first, second = of(messages, m.Insert)
    assert first.after == [b"1", None, None]
    assert second.after == [b"2", None, b"1.00"]
    assert [each.name for each in second.relation.columns] == ["id", "big", "more"]


def test_value_format_does_not_depend_on_database_settings(
    dsn: str, slot: str, connection: psycopg.Connection[Any]
) -> None:
    name = connection.info.dbname
    for setting in ("timezone = 'Asia/Tokyo'", "datestyle = 'German'", "bytea_output = 'escape'"):
        connection.execute(sql.SQL("ALTER DATABASE {} SET " + setting).format(sql.Identifier(name)))
    connection.execute("CREATE TABLE v (id int, t timestamptz, d date, f float8, b bytea, i interval)")
    start = prepare(connection, slot)
    values = "'2024-02-03 04:05:06.789+00', 'infinity', 0.1::float8 + 0.2, '\\x00ff', '1 day'"
    connection.execute(sql.SQL("INSERT INTO v VALUES (1, " + values + ")"))
    with reading(dsn, slot, start) as reader:
        (insert,) = of(reader.until_mark(connection), m.Insert)
    expected = [
        b"1",
        b"2024-02-03 04:05:06.789+00",
        b"infinity",
        b"0.30000000000000004",
        b"\\x00ff",
        b"1 day",
    ]
    assert insert.after == expected


def test_binary_values_are_streamed_when_requested(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    connection.execute("INSERT INTO t VALUES (258, 'a')")
    with reading(dsn, slot, start, binary=True) as reader:
        (insert,) = of(reader.until_mark(connection), m.Insert)
    assert insert.after == [b"\0\0\0\0\0\0\1\2", b"a", None]
    assert type(insert.after[0]) is m.Binary


@pytest.mark.parametrize("streaming", [Streaming.ON, Streaming.PARALLEL])
def test_a_large_transaction_is_streamed(
    dsn: str, slot: str, connection: psycopg.Connection[Any], streaming: Streaming
) -> None:
    start = prepare(connection, slot)
    with connection.transaction():
        connection.execute("INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 5000) i")
        with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("INSERT INTO t SELECT -i, repeat('y', 50) FROM generate_series(1, 5000) i")
            connection.execute("SELECT 1 / 0")
    with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
        connection.execute("UPDATE t SET name = repeat('z', 50)")
        connection.execute("SELECT 1 / 0")
    connection.execute("INSERT INTO t VALUES (0)")

    with reading(make_conninfo(dsn, options=SMALL_MEMORY), slot, start, streaming) as reader:
        messages = reader.until_mark(connection)

    (commit,) = of(messages, m.StreamCommit)
    aborts = of(messages, m.StreamAbort)
    lost = {each.subxid for each in aborts}
    assert all((each.abort_lsn is None) == (streaming is Streaming.ON) for each in aborts)
    streamed = [each for each in of(messages, m.Insert, m.Update) if each.xid is not None]
    kept = [each for each in streamed if each.xid not in lost]
    assert [each.after[0] for each in kept] == [b"%d" % i for i in range(1, 5001)]
    assert kept[0].xid == commit.xid
    # A transaction known to be aborted when decoded may be sent partly or not at all.
    assert {each.after[1][:1] for each in streamed if each.xid in lost} <= {b"y", b"z"}
    assert len(of(messages, m.StreamStart)) == len(of(messages, m.StreamStop)) > 1
    (small,) = [each for each in of(messages, m.Insert) if each.xid is None]
    assert small.after == [b"0", None, None]


def test_large_transaction_that_aborts_while_streamed_is_discarded(
    dsn: str, slot: str, connection: psycopg.Connection[Any]
) -> None:
    start = prepare(connection, slot)
    with reading(make_conninfo(dsn, options=SMALL_MEMORY), slot, start, Streaming.PARALLEL) as reader:
        with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 5000) i")
            # It may abort only once it is streamed, after the read below.
            reader.until(lambda: bool(of(reader.messages, m.StreamStop)))
            connection.execute("SELECT 1 / 0")
        messages = reader.until_mark(connection)
    xid = of(messages, m.StreamStart)[0].xid
    (abort,) = of(messages, m.StreamAbort)
    assert (abort.xid, abort.subxid) == (xid, xid)
    assert abort.abort_lsn > start
    assert abort.abort_ms > 0
    assert not of(messages, m.StreamCommit)


def test_nontransactional_message_is_streamed(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    with reading(dsn, slot, start) as reader:
        with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
            emit_message(connection, "lost")
            emit_message(connection, "kept", transactional=False)
            connection.execute("SELECT 1 / 0")
        messages = reader.until_mark(connection)
    (message,) = of(messages, m.LogicalMessage)
    assert (message.prefix, message.transactional) == ("kept", False)
    assert message.content == b"a mark"


def test_confirmed_changes_are_not_sent_again(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("INSERT INTO t VALUES (2)")
    with reading(dsn, slot, start) as reader:
        first, _ = of(reader.until_mark(connection), m.Commit)
        reader.stream.confirm(first.end_lsn)
        reader.stream.confirm(start)
        assert reader.stream.flushed == first.end_lsn
    with reading(dsn, slot, start) as reader:
        (insert,) = of(reader.until_mark(connection), m.Insert)
    assert insert.after[0] == b"2"
    state = slots.read(connection, slot)
    assert state is not None
    assert state.confirmed_flush == first.end_lsn


def test_idle_slot_advances_by_keepalives(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot, publish="FOR TABLE t")
    connection.execute("CREATE TABLE other (id int)")
    with reading(dsn, slot, start) as reader:
        connection.execute("INSERT INTO other VALUES (1)")
        reader.until(lambda: any(each.end > start for each in reader.keepalives))
        end = reader.keepalives[-1].end
        assert reader.stream.received >= end
        reader.stream.confirm(end)
    with reading(dsn, slot, start) as reader:
        assert not of(reader.until_mark(connection), m.Insert)
    state = slots.read(connection, slot)
    assert state is not None
    assert state.confirmed_flush == end


def test_answers_keep_stream_alive_with_short_wal_sender_timeout(
    dsn: str, slot: str, connection: psycopg.Connection[Any]
) -> None:
    start = prepare(connection, slot)
    # Slow machines get a longer timeout.
    for seconds in (1, 5, 25):
        impatient = make_conninfo(dsn, options=f"-c wal_sender_timeout={seconds}s")
        with (
            contextlib.suppress(*([DatabaseUnavailable] if seconds < 25 else [])),
            reading(impatient, slot, start, status_interval=3600) as reader,
        ):
            # Three half-timeouts: without an answer the server would end the stream at the second.
            reader.until(lambda: sum(each.reply_requested for each in reader.keepalives) >= 3)
            return


@pytest.mark.parametrize("found", [True, False])
def test_read_respects_limit_and_timeout(
    dsn: str, slot: str, connection: psycopg.Connection[Any], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not found:
        monkeypatch.setattr(libpq, "loaded", lambda _: None)
    start = prepare(connection, slot)
    connection.execute("INSERT INTO t SELECT generate_series(1, 100)")
    with ReplicationStream(dsn, slot, PUBLICATION, start) as stream:
        assert select.select([stream], [], [], 60)[0]
        seen = 0
        while seen < 103:
            frames = stream.read(7, 60)
            assert 0 < len(frames) <= 7
            seen += len(frames)
        while stream.read(10, 0):
            pass
        stream.close()
        stream.close()


@pytest.mark.parametrize(
    "name", ['we"ird', "it's", "a,b", "back\\slash", "naïve 名", " spaced ", "'; DROP TABLE t; --"]
)
def test_hostile_publication_names_are_quoted(
    dsn: str, slot: str, connection: psycopg.Connection[Any], name: str
) -> None:
    connection.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))
    start = slots.create(connection, slot, failover=False)
    connection.execute("INSERT INTO t VALUES (1)")
    with ReplicationStream(dsn, slot, name, start) as stream:
        seen: list[bytes] = []
        while b"I" not in seen:
            seen.extend(each[:1] for each in stream.read(100, 60) if isinstance(each, bytes))


def test_connection_ignores_settings_of_role_database_and_dsn(dsn: str, connection: psycopg.Connection[Any]) -> None:
    harmful = {
        "search_path": "public, pg_catalog",
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
        "row_security": "on",
        "client_min_messages": "error",
        "quote_all_identifiers": "on",
    }
    name = connection.info.dbname
    for setting, value in harmful.items():
        connection.execute(f'ALTER DATABASE "{name}" SET {setting} = {value}')
    theirs = " ".join(f"-c {setting}={value.replace(' ', '')}" for setting, value in harmful.items())
    opened = _connect(for_replication(make_conninfo(dsn, options=theirs)))
    try:
        opened.exec_(pinned(opened.server_version, reading=True))
        shown = {setting: opened.exec_(f"SHOW {setting}".encode()).get_value(0, 0) for setting in harmful}
    finally:
        opened.finish()
    assert shown == {
        "search_path": b"pg_catalog, pg_temp",
        "default_transaction_isolation": b"read committed",
        "default_transaction_deferrable": b"off",
        "row_security": b"off",
        "client_min_messages": b"warning",
        "quote_all_identifiers": b"off",
    }
