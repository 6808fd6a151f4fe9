"""Rows that change without an event for any of them are read again, or stop their table; never a stale value.

All cases are tables of one source. Each is changed twice: once while the producer runs, and once while it is stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from infra.positions import ColumnForm, FormState
from producers.feed import TableFeed
from producers.producer import Session
from producers.silent_changes import silent_change
from schemas.positions import Lsn
from tests.producers.captures import MemoryRegistry, done, feed
from tests.producers.folding import Record, fold, ops, text
from tests.producers.sources import Running, Source, running, until

stack = pytest.mark.stack

NewSource = Callable[..., Source]

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE other_mood AS ENUM ('sad', 'happy');
CREATE TYPE new_mood AS ENUM ('sad', 'happy');
CREATE TYPE kept_mood AS ENUM ('sad', 'happy');
CREATE DOMAIN feeling AS mood;
CREATE TYPE pair AS (a int, b mood);
CREATE TYPE wide AS (a int, b text, c text);
CREATE TYPE named AS (a int, b text);
CREATE DOMAIN short AS text;
CREATE TYPE mood_range AS RANGE (subtype = other_mood);
"""


@dataclass(frozen=True)
class Case:
    """A table `{t}` with a column `v`, its first rows, and what changes their values without an event.

    `again` is run while the producer is stopped, `change` while it runs; `v` is a column of the table before and after.
    """

    columns: str
    rows: tuple[str, ...]
    change: str
    again: str
    parts: str = ""


PARTS = (
    "PARTITION BY RANGE (id); CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES FROM (0) TO (50);"
    "CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES FROM (50) TO (99)"
)

CHANGED = {
    # A column's attribute number counts.
    "dropped_and_added": Case(
        "v text", ("'old'",), "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v text", "ALTER TABLE {t} DROP v, ADD v text"
    ),
    "dropped_and_added_in_one": Case(
        "v int",
        ("1", "2"),
        "ALTER TABLE {t} DROP v, ADD v int",
        "UPDATE {t} SET v = 3; ALTER TABLE {t} DROP v, ADD v int DEFAULT 9",
    ),
    "dropped_and_added_with_default": Case(
        "v int",
        ("1",),
        "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v int DEFAULT 7",
        "ALTER TABLE {t} DROP v, ADD v int NOT NULL DEFAULT 8",
    ),
    "dropped_and_added_with_an_event_between": Case(
        "v text",
        ("'old'", "'older'"),
        "ALTER TABLE {t} DROP v; INSERT INTO {t} (id) VALUES (50); ALTER TABLE {t} ADD v text",
        "UPDATE {t} SET v = 'x' WHERE id = 1; ALTER TABLE {t} DROP v; INSERT INTO {t} (id) VALUES (51);"
        "ALTER TABLE {t} ADD v text DEFAULT 'd'",
    ),
    "names_swapped": Case(
        "v int, w int DEFAULT 5",
        ("1",),
        "ALTER TABLE {t} RENAME v TO x; ALTER TABLE {t} RENAME w TO v; ALTER TABLE {t} RENAME x TO w",
        "ALTER TABLE {t} RENAME v TO x; ALTER TABLE {t} RENAME w TO v; ALTER TABLE {t} RENAME x TO w",
    ),
    # The same type, with other values.
    "using_with_the_same_type": Case(
        "v text",
        ("'abc'",),
        "ALTER TABLE {t} ALTER v TYPE text USING upper(v)",
        "ALTER TABLE {t} ALTER v TYPE text USING v || '!'",
    ),
    "partitioned": Case(
        "v text",
        ("'abc'",),
        "ALTER TABLE {t} ALTER v TYPE text USING upper(v)",
        "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v text DEFAULT 'd'",
        PARTS,
    ),
    "using_with_a_wider_type": Case(
        "v int",
        ("1",),
        "ALTER TABLE {t} ALTER v TYPE bigint USING v * 1000",
        "ALTER TABLE {t} ALTER v TYPE bigint USING v + 1",
    ),
    "added_then_altered": Case(
        "v int",
        ("1",),
        "ALTER TABLE {t} ADD w text; UPDATE {t} SET w = 'a'; ALTER TABLE {t} ALTER w TYPE text USING upper(w)",
        "ALTER TABLE {t} ADD x int; UPDATE {t} SET x = 1; ALTER TABLE {t} ALTER x TYPE int USING x + 1",
    ),
    "no_longer_generated": Case(
        "v int, w int GENERATED ALWAYS AS (v * 2) STORED",
        ("1",),
        "ALTER TABLE {t} ALTER w DROP EXPRESSION",
        "ALTER TABLE {t} ADD x int GENERATED ALWAYS AS (id) STORED; ALTER TABLE {t} ALTER x DROP EXPRESSION",
    ),
    # Modifiers.
    "numeric_to_decimals": Case(
        "v numeric",
        ("1.2345", "7", "'NaN'"),
        "ALTER TABLE {t} ALTER v TYPE numeric(10,2)",
        "ALTER TABLE {t} ALTER v TYPE numeric(10,2) USING v + 1",
    ),
    "numeric_to_hundreds": Case(
        "v numeric",
        ("12345", "99"),
        "ALTER TABLE {t} ALTER v TYPE numeric(3,-2)",
        "ALTER TABLE {t} ALTER v TYPE numeric(3,-3)",
    ),
    "numeric_of_decimals_alone": Case(
        "v numeric(2,4)",
        ("0.0012",),
        "ALTER TABLE {t} ALTER v TYPE numeric(2,3)",
        "ALTER TABLE {t} ALTER v TYPE numeric; ALTER TABLE {t} ALTER v TYPE numeric(2,4)",
    ),
    "interval_decimals": Case(
        "v interval second(3)",
        ("'1.234 s'",),
        "ALTER TABLE {t} ALTER v TYPE interval second(2)",
        "ALTER TABLE {t} ALTER v TYPE interval second(0)",
    ),
    "interval_fields": Case(
        "v interval",
        ("'1 year 2 mons 3 days 04:05:06'",),
        "ALTER TABLE {t} ALTER v TYPE interval day to minute",
        "ALTER TABLE {t} ALTER v TYPE interval year",
    ),
    "timestamp_decimals_and_back": Case(
        "v timestamp(6)",
        ("'2024-01-01 00:00:00.123456'",),
        "ALTER TABLE {t} ALTER v TYPE timestamp(3); ALTER TABLE {t} ALTER v TYPE timestamp(6)",
        "ALTER TABLE {t} ALTER v TYPE timestamp(0); ALTER TABLE {t} ALTER v TYPE timestamp(6)",
    ),
    "varchar_over_blanks": Case(
        "v varchar(10)",
        ("'ab    '", "'cd'"),
        "ALTER TABLE {t} ALTER v TYPE varchar(4)",
        "ALTER TABLE {t} ALTER v TYPE varchar(2)",
    ),
    "char_lengths": Case(
        "v char(10)", ("'ab'",), "ALTER TABLE {t} ALTER v TYPE char(4)", "ALTER TABLE {t} ALTER v TYPE char(12)"
    ),
    "bits": Case(
        "v varbit(8), w bit(8) DEFAULT B'10101010'",
        ("'10110'",),
        "ALTER TABLE {t} ALTER v TYPE varbit(3) USING v::varbit(3)",
        "ALTER TABLE {t} ALTER w TYPE bit(4) USING w::bit(4)",
    ),
    "a_domain": Case(
        "v short",
        ("'abc'",),
        "ALTER TABLE {t} ALTER v TYPE short USING v || 'x'",
        "ALTER TABLE {t} ALTER v TYPE short USING upper(v)",
    ),
    # Types whose text changes by itself. The statements are of types that several cases share: see SHARED.
    "enum": Case("v mood", ("'sad'",), "", ""),
    "enum_array": Case("v mood[]", ("'{{sad,happy}}'",), "", ""),
    "enum_domain": Case("v feeling", ("'sad'",), "", ""),
    "enum_domain_array": Case("v feeling[]", ("'{{sad,NULL}}'",), "", ""),
    "enum_in_a_composite": Case("v pair", ("'(1,sad)'",), "", ""),
    "enum_range": Case("v mood_range", ("'[sad,happy)'",), "", ""),
    "composite": Case("v wide", ("'(1,x,y)'",), "", ""),
    "composite_array": Case("v wide[]", ("ARRAY['(1,x,y)'::wide]",), "", ""),
}

SHARED = (
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    "ALTER TYPE other_mood RENAME VALUE 'sad' TO 'blue'; ALTER TYPE wide ADD ATTRIBUTE d int",
)
SHARED_AGAIN = (
    # Undone between two looks, with an event that has the name in between.
    "ALTER TYPE mood RENAME VALUE 'happy' TO 'merry'; UPDATE enum_array SET v = '{merry}'; INSERT INTO enum VALUES"
    " (70, 'merry'); ALTER TYPE mood RENAME VALUE 'merry' TO 'happy'",
    "ALTER TYPE other_mood RENAME VALUE 'happy' TO 'merry'; ALTER TYPE wide DROP ATTRIBUTE c, ADD ATTRIBUTE c text",
)

KEPT = {
    "storage_rewritten": Case("v text", ("'a'",), "VACUUM FULL {t}", "CLUSTER {t} USING {t}_pkey"),
    "one_partition_rewritten": Case(
        "v text",
        ("'a'",),
        "VACUUM FULL {t}_1; ALTER TABLE {t} ALTER v SET STATISTICS 10",
        "VACUUM FULL {t}_1; ALTER TABLE {t} ADD w int",
        PARTS,
    ),
    "altered_alone": Case(
        "v text",
        ("'a'",),
        "ALTER TABLE {t} ALTER v SET STATISTICS 10, ALTER v SET DEFAULT 'x', ALTER v SET STORAGE EXTERNAL",
        "ALTER TABLE {t} ALTER v SET NOT NULL; GRANT SELECT (v) ON {t} TO PUBLIC; ANALYZE {t}",
    ),
    "longer": Case(
        "v varchar(10)", ("'a'",), "ALTER TABLE {t} ALTER v TYPE varchar(20)", "ALTER TABLE {t} ALTER v TYPE text"
    ),
    "labels_added": Case(
        "v kept_mood",
        ("'sad'",),
        "ALTER TYPE kept_mood ADD VALUE 'new'",
        "ALTER TYPE kept_mood ADD VALUE 'newer' BEFORE 'new'; ALTER TYPE kept_mood RENAME TO still_mood",
    ),
    "attribute_renamed": Case(
        "v named", ("'(1,x)'",), "ALTER TYPE named RENAME ATTRIBUTE a TO z", "ALTER TYPE named RENAME TO called"
    ),
    "domain_altered": Case(
        "v short",
        ("'a'",),
        "ALTER DOMAIN short ADD CONSTRAINT c CHECK (length(VALUE) < 100)",
        "ALTER DOMAIN short SET DEFAULT 'd'; ALTER DOMAIN short RENAME TO shorter",
    ),
    "another_collation": Case(
        "v text",
        ("'a'",),
        'ALTER TABLE {t} ALTER v TYPE text COLLATE "C"',
        'ALTER TABLE {t} ALTER v TYPE text COLLATE "POSIX"',
    ),
    "column_added": Case("v text", ("'a'",), "ALTER TABLE {t} ADD w int", "ALTER TABLE {t} ADD x new_mood"),
    "generated": Case(
        "v int, w int GENERATED ALWAYS AS (v) STORED",
        ("1",),
        "ALTER TABLE {t} DROP w, ADD w int GENERATED ALWAYS AS (v + 1) STORED",
        "ALTER TABLE {t} ALTER w SET EXPRESSION AS (v + 2)",
    ),
}


def ddl(cases: dict[str, Case]) -> str:
    made = [
        f"CREATE TABLE {name} (id int PRIMARY KEY, {case.columns}) {case.parts.format(t=name)};"
        + "".join(
            f"INSERT INTO {name} (id, v) VALUES ({place}, {value});"
            for place, value in enumerate((each.format() for each in case.rows), 1)
        )
        for name, case in cases.items()
    ]
    return "".join(made)


def run(source: Source, statements: str, name: str = "") -> None:
    # One statement a transaction, as an application's migrations have it.
    for statement in statements.format(t=name).split(";") if name else statements.split(";"):
        if statement.strip():
            source.connection.execute(statement.encode())


def shown(records: list[Record], columns: tuple[str, ...]) -> list[tuple[str | None, ...]]:
    """Return the rows of a topic; a column that a record lacks is null."""
    rows = fold(records).values()
    return sorted(
        (tuple(text(row.get(column)) for column in columns) for row in rows), key=lambda row: int(row[0] or 0)
    )


def expected(source: Source, name: str) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    columns = tuple(
        column
        for (column,) in source.connection.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = '' ORDER BY attname <> 'id', attnum",
            (name,),
        ).fetchall()
    )
    # Not by a cast to text, which takes the blanks of a char(n) off.
    texts = sql.SQL(", ").join(
        sql.SQL("nullif(format('%s', {0}), '')").format(sql.Identifier(each)) for each in columns
    )
    query = sql.SQL("SELECT {} FROM {} ORDER BY id").format(texts, sql.Identifier(name))
    return columns, source.connection.execute(query).fetchall()


def becomes_equal(source: Source, producer: Running, name: str) -> None:
    columns, rows = expected(source, name)

    def equal() -> bool:
        producer.check()
        state = source.state().snapshots[f"public.{name}"]
        assert state.stopped is None, f"{name}: {state.stopped}"
        return not state.under_way and shown(source.records(f"public.{name}"), columns) == rows

    until(equal, f"{name} to be {rows}; it is {shown(source.records(f'public.{name}'), columns)}")


@stack
def test_rows_that_changed_without_events_are_read_again(new_source: NewSource) -> None:
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


@stack
@pytest.mark.parametrize("dies", ["noticed", "recorded", "copied"])
def test_a_change_survives_the_producer_that_noticed_it(new_source: NewSource, dies: str) -> None:
    source = new_source(
        TYPES + "CREATE TABLE t (id int PRIMARY KEY, v mood);"
        "INSERT INTO t SELECT i, 'sad' FROM generate_series(1, 30) i",
        "public.t",
        snapshot={"chunk_rows": 10},
    )
    with running(source) as producer:
        producer.caught_up()
    source.connection.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
    before = len(source.records("public.t"))
    assert isinstance(Running(source, type("Dies", (Dies,), {"dies": dies})).ended(), Died)
    assert source.recorded().snapshots["public.t"].under_way == (dies != "noticed")
    assert len(source.records("public.t")) - before == (10 if dies == "copied" else 0)
    with running(source) as producer:
        producer.caught_up()
        becomes_equal(source, producer, "t")
    assert source.recorded().snapshots["public.t"].under_way is False


class Died(Exception):
    """Stands for the end of the process."""


class Dies(Session):
    """Ends once a table is to be read again: before that is recorded, behind it, or behind its first chunk."""

    dies: str
    _chunks = 0

    def _claim(self, state, stopped):  # type: ignore[no-untyped-def]
        if self.dies == "noticed":
            assert all(feed.state.under_way for feed in self._feeds)
            raise Died
        super()._claim(state, stopped)

    def _copy_chunk(self, feed):  # type: ignore[no-untyped-def]
        if self._chunks == (self.dies == "copied"):
            raise Died
        self._chunks += 1
        return super()._copy_chunk(feed)


@stack
@pytest.mark.parametrize("stopped", [False, True])
def test_a_topic_is_emptied_where_keys_may_have_changed_without_events(new_source: NewSource, stopped: bool) -> None:
    """A number rewritten, a label renamed, an order that chunks were read in: old keys must not stay."""
    source = new_source(
        TYPES + "CREATE TABLE a (v numeric PRIMARY KEY, id int); CREATE TABLE b (v mood PRIMARY KEY, id int);"
        "INSERT INTO a VALUES (1.501, 1), (2, 2); INSERT INTO b VALUES ('sad', 1), ('happy', 2)",
        "public.a",
        "public.b",
    )
    # What was written right before has the old key in the stream, and is read by the new one at once.
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


@stack
def test_an_old_key_of_a_transaction_that_runs_on_is_taken_back(new_source: NewSource) -> None:
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


A = ColumnForm(number=2, version=700)
BEFORE = FormState(columns={"id": ColumnForm(number=1, version=700), "v": A}, storage={"9": 1})


def changed(*, storage: int = 1, copying: bool = False, **columns: ColumnForm) -> tuple[str, bool] | None:
    now = FormState(columns={**BEFORE.columns, **columns}, storage={"9": storage})
    change = silent_change(BEFORE, now, captured={"id", "v"}, key=("id",), copying=copying)
    return None if change is None else (change.reason, change.keys)


def test_a_rewrite_counts_for_the_columns_that_were_altered() -> None:
    altered = A.model_copy(update={"version": 701})
    assert changed(storage=2) is None
    assert changed(v=altered) is None
    assert changed(storage=2, v=altered) == ("column v was altered, and the table was rewritten", False)
    assert changed(storage=2, w=ColumnForm(number=3, version=701)) == (
        "column w was added, and the table was rewritten",
        False,
    )
    unpublished = ColumnForm(number=3, version=701, generated=True)
    assert changed(storage=2, w=unpublished) is None


def test_a_change_of_a_key_column_counts_before_all_others() -> None:
    key = ColumnForm(number=1, version=701)
    assert changed(storage=2, a=ColumnForm(number=3, version=701), id=key) == (
        "column id was altered, and the table was rewritten",
        True,
    )


def test_another_order_of_the_key_counts_while_chunks_are_judged_by_it() -> None:
    other = ColumnForm(number=1, version=701, collation=950)
    assert changed(id=other) is None
    assert changed(id=other, copying=True) == ("column id has another collation, and with it another order", True)


def test_a_dropped_column_is_remembered_until_its_name_comes_again() -> None:
    state = done().model_copy(update={"form": BEFORE})
    table = feed(MemoryRegistry(), state)
    dropped = FormState(columns={"id": BEFORE.columns["id"]}, storage={"9": 1})
    assert table.take_form(dropped, 9) is None
    again = FormState(
        columns={**dropped.columns, "v": ColumnForm(number=3, version=702)}, storage={"9": 1}, lsn=Lsn(900)
    )
    change = table.take_form(again, 9)
    assert change is not None
    assert change.reason == "column v was dropped and added again, or another one has its name now"
    assert table.copying
    assert (table.state.not_before, table.state.form.columns) == (9, again.columns)


def under_way(state: FormState) -> TableFeed:
    table = feed(MemoryRegistry(), done().model_copy(update={"form": BEFORE}))
    assert table.take_form(state, 9) is not None
    return table


def test_a_truncate_that_is_older_than_the_form_does_not_end_the_reading() -> None:
    """Rows that the stream has behind the truncate may be older than the change."""
    form = FormState(
        columns={**BEFORE.columns, "v": A.model_copy(update={"number": 3})}, storage={"9": 1}, lsn=Lsn(900)
    )
    table = under_way(form)
    table.truncated(Lsn(899))
    assert table.copying
    table.truncated(Lsn(900))
    assert not table.copying


def test_a_change_during_the_first_copy_is_read_again_after_it() -> None:
    table = feed(MemoryRegistry(), None)
    table.take_form(BEFORE, 7)
    assert not table.state.asked
    rewritten = FormState(columns={**BEFORE.columns, "v": A.model_copy(update={"version": 701})}, storage={"9": 2})
    assert table.take_form(rewritten, 9) is not None
    assert len(table.state.asked) == 1
    assert not table.state.done
