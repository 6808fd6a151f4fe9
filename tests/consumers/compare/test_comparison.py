"""The row-level comparison of a table with its topic finds exactly the differences while both are live."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.compare import marking
from consumers.compare.comparison import compare
from consumers.compare.judgement import Comparison
from consumers.compare.repair import request_repair
from consumers.compare.table_rows import KeyRange, TableRows
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.postgres.control import ensure_control_schema
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.positions import read_sources
from producers.session.resnapshot_request import record_for_next_start
from producers.session.service import produce
from schemas.codec.varints import encode_long
from schemas.errors import HeadraceError, UsageError
from schemas.topics import table_topic
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings

pytestmark = pytest.mark.stack

TABLE = "public.container_repositories"
Connection = psycopg.Connection[Any]


@pytest.fixture
def settings(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Settings:
    return load_settings(
        write_settings(
            tmp_path / "headrace.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": bootstrap_servers, "partitions": 2},
                "databases": {
                    "main": {
                        "dsn": database.dsn,
                        "gitlab_schemas": ["gitlab_main"],
                        "tables": [TABLE],
                        "allow_unlimited_wal": True,
                    }
                },
            },
        )
    )


@pytest.fixture
def connection(database: Database) -> Connection:
    opened = database.connect()
    opened.execute(
        f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, name text, note text, at timestamptz DEFAULT now(),"
        " price numeric)"
    )
    opened.execute(
        f"INSERT INTO {TABLE} SELECT n, 'name ' || n, repeat('é', 50), now(), n / 7.0 FROM generate_series(1, 5000) n"
    )
    return opened


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def producer(settings: Settings, connection: Connection) -> Iterator[threading.Event]:
    """A producer that has read the table and follows it; the event stops it."""
    stop = threading.Event()
    running = threading.Thread(target=produce, args=(settings, "main", stop))
    running.start()

    def copied() -> bool:
        state = read_sources(settings).get("main")
        return state is not None and TABLE in state.snapshots and state.snapshots[TABLE].done

    try:
        until(copied, "the table is copied")
        yield stop
    finally:
        stop.set()
        running.join(PATIENCE)


def poison(settings: Settings, connection: Connection) -> None:
    """Put wrong records of rows 10 (of another row), 20 (gone) and 30 (unreadable) into the topic."""
    del connection
    topic = table_topic(settings.prefix, "gitlab_main", "main", "public", "container_repositories")
    found: dict[bytes, tuple[bytes, int]] = {}
    with clients.reading(settings.kafka) as client:
        client.subscribe([topic])
        while len(found) < 5_000:
            for record in client.consume(5_000, timeout=1):
                assert record.error() is None
                found[bytes(record.key() or b"")] = bytes(record.value() or b""), int(record.partition() or 0)
    keys = {number: next(key for key in found if key[5:] == _long(number)) for number in (10, 11, 20, 30)}
    writer = clients.producer(settings.kafka)
    writer.produce(topic, key=keys[10], value=found[keys[11]][0], partition=found[keys[10]][1])
    writer.produce(topic, key=keys[20], value=None, partition=found[keys[20]][1])
    writer.produce(topic, key=keys[30], value=found[keys[30]][0][:-3], partition=found[keys[30]][1])
    # A row that the table does not have.
    writer.produce(topic, key=keys[10][:5] + _long(9_999_999), value=found[keys[11]][0], partition=0)
    assert writer.flush(PATIENCE) == 0


def _long(value: int) -> bytes:
    zigzag, out = value << 1, bytearray()
    while zigzag > 127:
        out.append(zigzag & 127 | 128)
        zigzag >>= 7
    return bytes([*out, zigzag])


def test_topic_without_faults_compares_equal_while_both_change(
    settings: Settings, connection: Connection, producer: threading.Event, stopping: threading.Event, database: Database
) -> None:
    writing, wrote = threading.Event(), threading.Event()
    other = database.connect()

    def write() -> None:
        number = 0
        while not writing.is_set():
            number += 1
            other.execute(f"UPDATE {TABLE} SET name = %s WHERE id %% 500 = %s", (f"new {number}", number % 500))
            other.execute(f"INSERT INTO {TABLE} (id, name) VALUES (%s, 'fresh')", (10_000 + number,))
            other.execute(f"DELETE FROM {TABLE} WHERE id = %s", (number,))
            wrote.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert wrote.wait(PATIENCE)
        while_it_changes = [compare(settings, "main", TABLE, stopping) for _ in range(3)]
    finally:
        writing.set()
        writer.join()
    assert all(found.same for found in while_it_changes), while_it_changes
    at_rest = compare(settings, "main", TABLE, stopping)
    assert at_rest.same
    assert at_rest.unsettled == 0
    row = connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
    assert row == (at_rest.rows,)


@pytest.mark.long
def test_missing_extra_differing_and_unreadable_rows_are_reported_and_re_snapshotted(
    settings: Settings,
    connection: Connection,
    producer: threading.Event,
    stopping: threading.Event,
) -> None:
    poison(settings, connection)
    # Rows that changed since have their events, and one of the wrong records is repaired by such an event.
    connection.execute(f"UPDATE {TABLE} SET name = 'changed' WHERE id IN (1, 2, 3)")

    found = compare(settings, "main", TABLE, stopping)

    assert not found.same
    assert found.missing == [{"id": 20}]
    assert found.extra == [{"id": 9_999_999}]
    by_key = {one["id"]: columns for one, columns in zip(found.differing, found.columns, strict=True)}
    assert by_key == {10: ["id", "name", "price"], 30: ["unreadable"]}

    # Twice, since a second request is harmless; an extra row of the topic is not repaired.
    assert [request_repair(settings, found) for _ in range(2)] == [3, 3]

    def repaired() -> bool:
        if not read_sources(settings)["main"].snapshots[TABLE].done:
            return False
        again = compare(settings, "main", TABLE, stopping)
        return (again.missing, again.differing, len(again.extra)) == ([], [], 1)

    until(repaired, "the rows are re-snapshotted")


def test_table_whose_topic_is_about_to_be_emptied_is_not_compared(
    settings: Settings, connection: Connection, producer: threading.Event, stopping: threading.Event
) -> None:
    state = read_sources(settings)["main"].snapshots[TABLE]
    record_for_next_start(settings, state.model_copy(update={"from_scratch": True}))
    with pytest.raises(
        HeadraceError, match=r"is to be re-snapshotted from scratch.* compare once the producer of main"
    ):
        until(lambda: compare(settings, "main", TABLE, stopping) and None, "the request to be seen")


class Killed(BaseException):
    """The end of a process, which nothing catches."""


def test_killed_comparison_continues_where_it_was(
    settings: Settings,
    connection: Connection,
    producer: threading.Event,
    stopping: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison(settings, connection)
    monkeypatch.setattr(marking, "_RANGE_ROWS", 500)
    monkeypatch.setattr(marking, "_SAVE_SECONDS", -1.0)
    begun: list[Sequence[str] | None] = []
    ranges = TableRows.ranges

    def killed_in_the_fifth(self: TableRows, rows: int, after: Sequence[str] | None = None) -> Iterator[KeyRange]:
        begun.append(after)
        for number, each in enumerate(ranges(self, rows, after)):
            if len(begun) == 1 and number == 4:
                raise Killed
            yield each

    monkeypatch.setattr(TableRows, "ranges", killed_in_the_fifth)
    with pytest.raises(Killed):
        compare(settings, "main", TABLE, stopping)
    found = compare(settings, "main", TABLE, stopping)
    assert begun == [None, ("2000",)]
    assert found.rows == 5_000
    assert (found.missing, found.extra) == ([{"id": 20}], [{"id": 9_999_999}])
    assert [one["id"] for one in found.differing] == [10, 30]
    # It is over: the next one begins with the first row.
    assert compare(settings, "main", TABLE, stopping).rows == 5_000
    assert begun[2:] == [None]


@pytest.mark.parametrize("ahead", [-1_000_000_000, 1_000, 2**31 + 10, 2**32 - 200_000])
def test_event_whose_transaction_is_billions_old_is_judged(
    settings: Settings, connection: Connection, producer: threading.Event, stopping: threading.Event, ahead: int
) -> None:
    # An id ahead of the current one, in the 32 bits of an event, was assigned 2**32 ids before.
    row = connection.execute(f"UPDATE {TABLE} SET name = 'RIGHT' WHERE id = 50 RETURNING pg_current_xact_id()::text")
    (xid,) = row.fetchone() or ("0",)
    key, value, partition = last_record_of(settings, 50, b"RIGHT")
    old, new = b"\x02" + encode_long(int(xid)), b"\x02" + encode_long((int(xid) + ahead) % 2**32)
    assert value.count(old) == 1
    wrong = value.replace(b"RIGHT", b"WRONG").replace(old, new)
    writer = clients.producer(settings.kafka)
    writer.produce(topic_of(settings), key=key, value=wrong, partition=partition)
    assert writer.flush(PATIENCE) == 0

    found = compare(settings, "main", TABLE, stopping)

    assert (found.differing, found.columns, found.unsettled) == ([{"id": 50}], [["name"]], 0)


def topic_of(settings: Settings) -> str:
    return table_topic(settings.prefix, "gitlab_main", "main", "public", "container_repositories")


def last_record_of(settings: Settings, number: int, text: bytes) -> tuple[bytes, bytes, int]:
    """Wait for a record of the row with `text` in it; return key, value and partition."""
    with clients.reading(settings.kafka) as client:
        client.subscribe([topic_of(settings)])
        while True:
            for record in client.consume(5_000, timeout=1):
                assert record.error() is None
                key, value = bytes(record.key() or b""), bytes(record.value() or b"")
                if key[5:] == _long(number) and text in value:
                    return key, value, int(record.partition() or 0)


def test_repair_requests_the_rows_that_differ(settings: Settings, connection: Connection) -> None:
    ensure_control_schema(connection, "main", ["gitlab_main"])
    # A trigger on the table of requests, since requests exist only within their transaction.
    connection.execute(
        "CREATE TABLE public.asked AS TABLE headrace.snapshot_requests;"
        " CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.asked SELECT NEW.*; RETURN NULL; END $$;"
        " CREATE TRIGGER note AFTER INSERT ON headrace.snapshot_requests FOR EACH ROW EXECUTE FUNCTION public.note()"
    )
    found = Comparison(TABLE, "main", missing=[{"a": 5, "b": "x"}], extra=[{"a": 6, "b": "y"}])
    assert request_repair(settings, found) == 1
    asked = connection.execute('SELECT "table", first_key, last_key, from_scratch FROM public.asked').fetchall()
    assert asked == [(TABLE, ["5", "x"], ["5", "x"], False)]
    assert connection.execute("SELECT count(*) FROM headrace.snapshot_requests").fetchone() == (0,)


def test_comparison_without_topic_or_gitlab_schema_is_refused(
    settings: Settings, connection: Connection, stopping: threading.Event
) -> None:
    with pytest.raises(UsageError, match="has no events"):
        compare(settings, "main", TABLE, stopping)
    with pytest.raises(HeadraceError, match="no gitlab schema is known"):
        compare(settings, "main", "public.other", stopping)
