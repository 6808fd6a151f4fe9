"""Tables whose rows change without events are re-snapshotted or stopped; values are never stale.

All cases are tables of one source. Each is changed twice: once while the producer runs, and once while it is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import pytest

from consumers.testing.waiting import until
from producers.publish.table_publisher import TableFeed
from producers.session import opening
from producers.session.commits import FROM_SCRATCH, Restart
from tests.producers.between_chunks import ChunkByChunk
from tests.producers.folding import ops
from tests.producers.sources import Running, Source, running
from tests.producers.watch.silent_change_cases import (
    CHANGED,
    KEPT,
    SHARED,
    SHARED_AGAIN,
    TYPES,
    becomes_equal,
    ddl,
    expected,
    run,
    shown,
)

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


@pytest.mark.long
def test_rows_changed_without_events_are_resnapshotted(new_source: NewSource) -> None:
    cases = {**CHANGED, **KEPT}
    source = new_source(TYPES + ddl(cases), *(f"public.{name}" for name in cases), partitions=1)
    with running(source) as producer:
        producer.caught_up()
        for name, case in cases.items():
            run(source, case.change, name)
        for statements in SHARED:
            run(source, statements)
        for name in CHANGED:
            becomes_equal(source, producer, name)
        read_while_running = {name: len(source.records(f"public.{name}")) for name in KEPT}
    for name, case in cases.items():
        run(source, case.again, name)
    for statements in SHARED_AGAIN:
        run(source, statements)
    with running(source) as producer:
        producer.caught_up()
        for name in CHANGED:
            becomes_equal(source, producer, name)
        for name, case in KEPT.items():
            assert read_while_running[name] == len(case.rows), name
            assert ops(source.records(f"public.{name}"), id=1) == ["r"], name
            columns, rows = expected(source, name)
            assert shown(source.records(f"public.{name}"), columns) == rows


def test_numeric_that_gets_decimals_stops_its_table(new_source: NewSource) -> None:
    """Its earlier records have text, which a reader of the new schema would take for a decimal's bytes."""
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, v numeric); INSERT INTO t VALUES (1, 1.2345);"
        "CREATE TABLE u (id int PRIMARY KEY)",
        "public.t",
        "public.u",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE t ALTER v TYPE numeric(10,2)")
        source.connection.execute("INSERT INTO t VALUES (2, 2)")

        def stopped() -> bool:
            producer.check()
            return source.state().snapshots["public.t"].stopped is not None

        until(stopped, "the table to be stopped")
        assert "column v: text → numeric(10,2)" in (source.state().snapshots["public.t"].stopped or "")
        source.connection.execute("INSERT INTO u VALUES (1)")
        source.passes(producer.check)
    source.require_equal("public.u")


@pytest.mark.parametrize("dies", ["noticed", "recorded", "copied"])
def test_detected_change_survives_its_producer(new_source: NewSource, dies: str) -> None:
    source = new_source(
        TYPES + "CREATE TABLE t (id int PRIMARY KEY, v mood);"
        "INSERT INTO t SELECT i, 'sad' FROM generate_series(1, 30) i",
        "public.t",
        snapshot={"chunk_rows": 20},
    )
    with running(source) as producer:
        producer.caught_up()
    source.connection.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
    before = len(source.records("public.t"))
    with pytest.MonkeyPatch.context() as killed:
        if dies == "noticed":
            killed.setattr(opening, "claim", die)
        assert isinstance(Running(source, type("Dies", (Dies,), {"after": int(dies == "copied")})).ended(), Died)
    assert source.recorded().snapshots["public.t"].under_way == (dies != "noticed")
    assert len(source.records("public.t")) - before == (10 if dies == "copied" else 0)
    with running(source) as producer:
        producer.caught_up()
        becomes_equal(source, producer, "t")
    assert source.recorded().snapshots["public.t"].under_way is False


class Died(Exception):
    """Simulates the end of the process."""


def die(_start: object, _commits: object, feeds: Sequence[TableFeed], *_: object) -> None:
    """Simulates the end of a process that decided on a re-snapshot but has not recorded it."""
    assert all(feed.state.under_way for feed in feeds)
    raise Died


class Dies(ChunkByChunk):
    """Ends once a re-snapshot is recorded, after this many chunks of it."""

    after: int
    _chunks = 0

    def _add(self, feed, began, copy):  # type: ignore[no-untyped-def]
        if self._chunks == self.after:
            raise Died
        self._chunks += 1
        return super()._add(feed, began, copy)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_topic_is_emptied_where_keys_may_have_changed_without_events(new_source: NewSource, stopped: bool) -> None:
    """A number rewritten, a label renamed, a changed sort order: old keys must not remain."""
    source = new_source(
        TYPES + "CREATE TABLE a (v numeric PRIMARY KEY, id int); CREATE TABLE b (v mood PRIMARY KEY, id int);"
        "INSERT INTO a VALUES (1.501, 1), (2, 2); INSERT INTO b VALUES ('sad', 1), ('happy', 2)",
        "public.a",
        "public.b",
    )
    # A row written right before has the old key in the stream, and is read by the new one at once.
    change = (
        "INSERT INTO a VALUES (3.501, 3); ALTER TABLE a ALTER v TYPE numeric USING round(v, 1);"
        "ALTER TYPE mood ADD VALUE 'new'; INSERT INTO b VALUES ('new', 3); ALTER TYPE mood RENAME VALUE 'new' TO 'old';"
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"
    )
    with running(source) as producer:
        producer.caught_up()
        if not stopped:
            run(source, change)
            for name in ("a", "b"):
                becomes_equal(source, producer, name)
    if stopped:
        run(source, change)
        with running(source) as producer:
            producer.caught_up()
            for name in ("a", "b"):
                becomes_equal(source, producer, name)
    assert {record.op for record in source.records("public.a")} == {"r", "t", "c"}


@pytest.mark.long
def test_old_key_of_long_transaction_is_removed(new_source: NewSource) -> None:
    source = new_source(
        TYPES + "CREATE TABLE b (v mood PRIMARY KEY, id int); INSERT INTO b VALUES ('happy', 1)", "public.b"
    )
    dsn = source.settings.database("main").dsn.get_secret_value()

    def beaten() -> object:
        return source.connection.execute("SELECT beaten_at FROM headrace.heartbeat").fetchone()

    def a_look() -> None:
        before = beaten()
        until(lambda: beaten() != before, "a look at the catalog")

    with running(source) as producer, psycopg.connect(dsn, autocommit=True) as longer:
        producer.caught_up()
        longer.execute("BEGIN")
        longer.execute("INSERT INTO b VALUES ('sad', 2)")
        source.connection.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
        a_look()
        a_look()
        longer.execute("COMMIT")
        becomes_equal(source, producer, "b")
        source.passes(producer.check)
        becomes_equal(source, producer, "b")


def test_key_type_change_between_chunks_stops_no_table(new_source: NewSource) -> None:
    # The first chunk ends at a value of the earlier type; the second starts after it.
    made = "CREATE TYPE pair AS (a int, b text); CREATE TABLE t (id pair PRIMARY KEY, v int);"
    rows = "INSERT INTO t SELECT (i, 'x')::pair, i FROM generate_series(1, 20) i"
    source = new_source(made + rows, "public.t", snapshot={"chunk_rows": 3})
    tried: list[str] = []

    class Changes(ChunkByChunk):
        def _add(self, feed, began, copy):  # type: ignore[no-untyped-def]
            if len(tried) == 1:
                source.connection.execute("ALTER TYPE pair ADD ATTRIBUTE c int")
            tried.append(feed.table.name)
            return super()._add(feed, began, copy)

    # It ends because the table is to be re-snapshotted, for which produce would restart it.
    assert Running(source, Changes).restarts() == Restart(FROM_SCRATCH, "public.t")
    with running(source) as producer:
        producer.caught_up()
    assert source.recorded().snapshots["public.t"].stopped is None
    source.require_equal("public.t")
