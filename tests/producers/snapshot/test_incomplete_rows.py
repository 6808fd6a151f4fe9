"""Rows whose last record omits a value are read by key, so that the last record is the row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.state.positions import IncompleteState
from producers.snapshot import incomplete_rows
from producers.snapshot.incomplete_rows import READ_SECONDS, IncompleteRows
from producers.snapshot.resnapshot_rules import RememberedChunk
from schemas.events import UNCHANGED
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment, Snapshot
from tests.producers.folding import Record, ops
from tests.producers.sources import Source, running

NewSource = Callable[..., Source]

CHUNK = RememberedChunk(frozenset({b"1"}), Moment(Snapshot.parse("100:110:105"), Lsn(1000)))


def noted(*keys: str) -> IncompleteRows:
    rows = IncompleteRows(IncompleteState())
    for key in keys:
        rows.note((key,))
    return rows


def test_a_key_is_read_at_once_and_then_every_few_seconds_at_most() -> None:
    rows = noted("1", "1")
    assert rows.next_keys == (("1",),)
    assert rows.due(50.0, copying=False)
    rows.read(rows.next_keys, CHUNK, 50.0)
    rows.note(("1",))
    assert not rows.due(50.0 + READ_SECONDS, copying=False), "the rows that were read are not passed yet"
    assert rows.passed(Lsn(1000))
    assert not rows.due(49.9 + READ_SECONDS, copying=False)
    assert rows.due(50.0 + READ_SECONDS, copying=False)


def test_many_keys_are_read_in_batches_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incomplete_rows, "_MANY", 3)
    rows = noted("1", "2", "3", "4")
    rows.read((), CHUNK, 50.0)
    rows.passed(Lsn(1000))
    assert rows.many
    assert rows.due(50.0, copying=False)
    assert not rows.due(50.1, copying=True), "a chunk of the copy gets its turn"
    assert rows.due(50.2, copying=True)
    assert rows.next_keys == (("1",), ("2",), ("3",))
    rows.read(rows.next_keys, CHUNK, 50.0)
    assert rows.state.keys == (("4",),)


def test_size_of_pending_keys_is_bounded() -> None:
    assert not noted("k" * 60_000).many
    assert noted("k" * 70_000).many
    assert not noted("k" * 70_000).too_many
    assert noted(*(str(number) * 70_000 for number in range(4))).too_many


def test_keys_and_read_rows_are_recorded() -> None:
    rows = noted("1", "2")
    rows.read((("1",),), CHUNK, 50.0)
    again = IncompleteRows(IncompleteState.model_validate_json(rows.state.model_dump_json()))
    assert again.next_keys == (("2",),)
    assert again.remembered == CHUNK
    assert again.state == rows.state


BIG = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200) WHERE {0} IS NOT NULL)"


def lacking(records: list[Record]) -> set[str]:
    """Return the keys whose last record omits a value, which a compacted topic lacks."""
    last = {(record.partition, record.raw_key): record for record in records}
    events = [record for record in last.values() if record.event is not None and record.event.after is not None]
    return {str(record.key) for record in events if UNCHANGED in (record.event.after or {}).values()}  # type: ignore[union-attr]


def whole(source: Source, *tables: str) -> bool:
    """Whether no row is left to read by key or to remember."""
    snapshots = source.state().snapshots
    return all(snapshots[f"public.{table}"].incomplete == IncompleteState() for table in tables)


KINDS = {
    "numbers": "a int PRIMARY KEY",
    "texts": 'a text COLLATE "C" PRIMARY KEY',
    "in another order": "a text PRIMARY KEY",
    "citext": "a outside.citext PRIMARY KEY",
    "two columns": "a int, b varchar(9) COLLATE \"C\" DEFAULT 'x''\\y', PRIMARY KEY (a, b)",
    "two orders": "a numeric, b date DEFAULT '2020-02-02', PRIMARY KEY (a, b)",
    "times": "a timestamptz PRIMARY KEY",
    "partitioned": "a int PRIMARY KEY",
}
VALUES = {
    "texts": "'a ''b''\\' || {0}",
    "in another order": "'ä' || {0}",
    "citext": "('Ab' || {0})::outside.citext",
    "times": "timestamptz '2020-01-01 00:00:01.25 UTC' + {0} * interval '1 day'",
}


@pytest.mark.long
@pytest.mark.stack
def test_last_record_of_every_key_is_the_row(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incomplete_rows, "READ_SECONDS", 0.3)
    names = {kind: f"t{number}" for number, kind in enumerate(KINDS)}
    ddl = "CREATE SCHEMA outside; CREATE EXTENSION citext SCHEMA outside;"
    for kind, key in KINDS.items():
        split = " PARTITION BY HASH (a)" if kind == "partitioned" else ""
        ddl += f"CREATE TABLE {names[kind]} ({key}, n int, big text){split};"
        for part in range(2 if split else 0):
            of = f"PARTITION OF {names[kind]} FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
            ddl += f"CREATE TABLE {names[kind]}_{part} {of};"
        value = VALUES.get(kind, "{0}").format("i")
        ddl += (
            f"INSERT INTO {names[kind]} (a, n, big) SELECT {value}, 0, {BIG.format('i')} FROM generate_series(1, 9) i;"
        )
    source = new_source(ddl, *(f"public.{name}" for name in names.values()), complete_rows=True)
    with running(source) as producer:
        producer.caught_up()
        for round_ in range(3):
            for kind, name in names.items():
                first, new = (VALUES.get(kind, "{0}").format(number) for number in (round_ + 1, 100 + round_))
                source.connection.execute(f"UPDATE {name} SET n = n + 1".encode())
                source.connection.execute(f"UPDATE {name} SET a = {new} WHERE a::text = ({first})::text".encode())
            producer.caught_up()
        until(lambda: whole(source, *names.values()), "all rows")
        producer.check()
    for kind, name in names.items():
        assert not lacking(source.require_equal(f"public.{name}")), kind


@pytest.mark.stack
def test_only_rows_with_new_key_are_read_without_complete_rows(new_source: NewSource) -> None:
    source = new_source(
        f"CREATE TABLE t (id int PRIMARY KEY, n int, big text); INSERT INTO t SELECT i, 0, {BIG.format('i')}"
        " FROM generate_series(1, 3) i",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET n = 1 WHERE id = 1; UPDATE t SET id = 20 WHERE id = 2")
        producer.caught_up()
        until(lambda: whole(source, "t"), "the row")
        # A row deleted before it is read leaves nothing to read.
        source.connection.execute("UPDATE t SET id = 30 WHERE id = 3; DELETE FROM t WHERE id = 30")
        producer.caught_up()
        until(lambda: whole(source, "t"), "that it is gone")
    records = source.require_equal("public.t")
    assert ops(records, id=20) == ["c", "r"]
    assert lacking(records) == {"{'id': 1}"}


@pytest.mark.long
@pytest.mark.stack
def test_a_change_of_many_keys_is_read_in_batches(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incomplete_rows, "_MANY", 100)
    source = new_source(
        f"CREATE TABLE t (id int PRIMARY KEY, big text); INSERT INTO t SELECT i, {BIG.format('i')}"
        " FROM generate_series(1, 1500) i; CREATE TABLE u (id int PRIMARY KEY, big text); INSERT INTO u TABLE t",
        "public.t",
        "public.u",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET id = id + 10000; UPDATE u SET id = id + 10000 WHERE id < 5")
        producer.caught_up()
        until(lambda: whole(source, "t", "u"), "all rows")
        producer.check()
        state = source.state().snapshots["public.t"]
        assert (state.reread, state.asked) == (None, ()), "the whole table was read"
    assert not lacking(source.require_equal("public.t"))
    assert not lacking(source.require_equal("public.u"))


@pytest.mark.stack
def test_table_is_resnapshotted_when_too_many_keys_are_pending(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incomplete_rows, "_MOST", 100)
    source = new_source(
        f"CREATE TABLE t (id int PRIMARY KEY, big text); INSERT INTO t SELECT i, {BIG.format('i')}"
        " FROM generate_series(1, 300) i",
        "public.t",
    )
    dsn = source.settings.database("main").dsn.get_secret_value()
    with running(source) as producer, psycopg.connect(dsn, autocommit=True) as writer:
        producer.caught_up()
        with writer.transaction():
            writer.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            writer.execute("UPDATE t SET id = id + 1000")
        with writer.transaction():
            writer.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            source.passes(producer.check)
            until(lambda: source.state().snapshots["public.t"].incomplete.keys == (), "the keys to be given up")
        until(lambda: not source.state().snapshots["public.t"].under_way, "the re-snapshot")
        producer.check()
    records = source.require_equal("public.t")
    assert not lacking(records)
    assert sum(record.op == "r" for record in records) == 600


@pytest.mark.long
@pytest.mark.stack
def test_row_is_read_by_key_during_first_snapshot(new_source: NewSource) -> None:
    """A first snapshot may take hours; rows that it has passed need not wait for its end."""
    source = new_source(
        f"CREATE TABLE t (id int PRIMARY KEY, n int, big text); INSERT INTO t SELECT i, 0, {BIG.format('i')}"
        " FROM generate_series(1, 300) i",
        "public.t",
        snapshot={"chunk_rows": 2},
        complete_rows=True,
    )
    with running(source) as producer:
        numbers = count(1)

        def write() -> None:
            source.connection.execute("UPDATE t SET n = %s WHERE id IN (1, 2, 3, 150)", (next(numbers),))
            producer.check()

        def copied() -> bool:
            state = source.state().snapshots.get("public.t")
            return state is not None and state.done

        until(copied, "the first snapshot is done", meanwhile=write)
        producer.caught_up()
        until(lambda: whole(source, "t"), "the rows")
    assert not lacking(source.require_equal("public.t"))
