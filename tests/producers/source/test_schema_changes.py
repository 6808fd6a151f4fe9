"""After a schema change the stream continues or only that table stops; there is never a wrong value.

Every case runs while the table is streamed, and once more between two chunks of its snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from consumers.testing.waiting import until
from infra.kafka.topics import delete_topics
from producers.session.loop import Session
from schemas.events import UNCHANGED
from schemas.positions import Lsn
from tests.producers.between_chunks import ChunkByChunk
from tests.producers.folding import fold, text
from tests.producers.sources import Running, Source, running, topic_of

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

SCHEMA = (
    "CREATE TABLE t (id int PRIMARY KEY, n int, v text, at timestamp(6) DEFAULT '2024-01-01 00:00:00.123456',"
    " other int NOT NULL DEFAULT 0);"
    "CREATE TABLE u (id int PRIMARY KEY);"
    "INSERT INTO t SELECT i, i, 'v' || i FROM generate_series(1, 30) i; INSERT INTO u VALUES (1)"
)


@dataclass(frozen=True)
class Case:
    """`change` is run, then `write`; `stopped` is a part of the reason, None if the stream continues."""

    change: str
    write: str = "INSERT INTO t (id, v) VALUES (100, 'new'); UPDATE t SET v = 'updated' WHERE id = 1"
    stopped: str | None = None
    lacking: frozenset[str] = frozenset()
    """Columns that rows written before the change lack: neither null nor a value."""
    copied: bool = False
    """Whether the rest of the copy is still correct, since only the stream would be wrong."""


FOLLOWED = {
    "a column added": Case("ALTER TABLE t ADD more int"),
    "a column added with a default": Case("ALTER TABLE t ADD more int DEFAULT 5", lacking=frozenset({"more"})),
    "a column added not null": Case("ALTER TABLE t ADD more int NOT NULL DEFAULT 5", lacking=frozenset({"more"})),
    "a column dropped": Case("ALTER TABLE t DROP n"),
    "one dropped and another added": Case("ALTER TABLE t DROP n; ALTER TABLE t ADD m int"),
    "one dropped and another added, and dropped": Case(
        "ALTER TABLE t DROP n; ALTER TABLE t ADD m int; INSERT INTO t (id, m) VALUES (99, 1); ALTER TABLE t DROP m"
    ),
    "one renamed and dropped": Case(
        "ALTER TABLE t RENAME n TO m; INSERT INTO t (id, m) VALUES (99, 1); ALTER TABLE t DROP m"
    ),
    "a wider number": Case("ALTER TABLE t ALTER n TYPE bigint", "INSERT INTO t VALUES (100, 5000000000, 'x')"),
    "decimals of a second dropped": Case("ALTER TABLE t ALTER at TYPE timestamp(0)"),
    "a longer text": Case("ALTER TABLE t ALTER v TYPE varchar(100)"),
    "replica identity full": Case("ALTER TABLE t REPLICA IDENTITY FULL"),
    "an identity index with the key": Case(
        "CREATE UNIQUE INDEX i ON t (id, other); ALTER TABLE t REPLICA IDENTITY USING INDEX i"
    ),
    "a generated column": Case("ALTER TABLE t ADD twice int GENERATED ALWAYS AS (id * 2) STORED"),
    "the same key recreated": Case("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)"),
}

STOPPED = {
    "a column renamed": Case(
        "ALTER TABLE t RENAME v TO w", "INSERT INTO t (id, w) VALUES (100, 'new')", "column v was renamed to w"
    ),
    "a column renamed twice": Case(
        "ALTER TABLE t RENAME v TO w; INSERT INTO t (id, w) VALUES (99, 'w'); ALTER TABLE t RENAME w TO x",
        "INSERT INTO t (id, x) VALUES (100, 'new')",
        "column v was renamed to x",
    ),
    "a column renamed and renamed back": Case(
        "ALTER TABLE t RENAME v TO w; INSERT INTO t (id, w) VALUES (99, 'w'); ALTER TABLE t RENAME w TO v",
        stopped="a change in the stream has column w in place of v: one may be a rename of the other",
        copied=True,
    ),
    "a number made text": Case("ALTER TABLE t ALTER n TYPE text", stopped="column n"),
    "the key made wider": Case("ALTER TABLE t ALTER id TYPE bigint", stopped="key column id"),
    "another key": Case(
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, other)",
        "INSERT INTO t (id, other) VALUES (1, 1)",
        "its primary key changed from (id) to (id, other)",
    ),
    "another key under a full identity": Case(
        "ALTER TABLE t REPLICA IDENTITY FULL;ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, other)",
        "INSERT INTO t (id, other) VALUES (1, 1)",
        "its key (id) no longer has a unique index over NOT NULL columns",
    ),
    "no key": Case("ALTER TABLE t DROP CONSTRAINT t_pkey", "INSERT INTO t (id) VALUES (1)", "key"),
    "a key column dropped": Case("ALTER TABLE t DROP id", "INSERT INTO t (v) VALUES ('x')", "id"),
    "replica identity nothing": Case(
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
        "INSERT INTO t (id) VALUES (100)",
        "its replica identity leaves out key column id",
        copied=True,
    ),
    "an identity index without the key": Case(
        "ALTER TABLE t ADD o int NOT NULL GENERATED ALWAYS AS IDENTITY; CREATE UNIQUE INDEX i ON t (o);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX i",
        stopped="its replica identity leaves out key column id",
        copied=True,
    ),
    "the table renamed": Case(
        "ALTER TABLE t RENAME TO s", "INSERT INTO s (id) VALUES (100)", "it was renamed to public.s"
    ),
    "the table dropped": Case("DROP TABLE t", "INSERT INTO u VALUES (2)", "it was dropped"),
    "the table swapped": Case(
        "ALTER TABLE t RENAME TO old; CREATE TABLE t (LIKE old INCLUDING ALL)",
        "INSERT INTO t (id) VALUES (200); INSERT INTO old (id) VALUES (100)",
        "it was renamed to public.old",
    ),
    "the table removed from the publication": Case(
        "ALTER PUBLICATION headrace DROP TABLE t", stopped="it was removed from the publication"
    ),
}


@pytest.fixture
def source(new_source: NewSource) -> Source:
    return new_source(SCHEMA, "public.t", "public.u", snapshot={"chunk_rows": 10})


def require_right(source: Source, case: Case, table: str = "t") -> None:
    """Fail unless each row of the topic matches the table's, apart from values that it lacks."""
    rows = fold(source.records("public.t"))
    cursor = source.connection.execute(f"SELECT * FROM {table} LIMIT 0".encode())
    columns = [column.name for column in cursor.description or ()]
    shown = {
        row[0]: dict(zip(columns, row, strict=True))
        for row in source.connection.execute(
            f"SELECT {', '.join(f'{name}::text' for name in columns)} FROM {table}".encode()
        ).fetchall()
    }
    assert {str(row["id"]) for row in rows.values()} == set(shown)
    for row in rows.values():
        expected = shown[str(row["id"])]
        assert UNCHANGED not in row.values()
        for name in expected.keys() - {"twice"}:
            if name in row:
                assert text(row[name]) == expected[name], name
            else:
                assert name in case.lacking or expected[name] is None, name


def until_right(source: Source, case: Case, producer: Running) -> None:
    """Wait until the topic is correct: a table that the change rewrote is re-snapshotted."""

    def right() -> bool:
        producer.check()
        if source.state().snapshots["public.t"].under_way:
            return False
        require_right(source, case)
        return True

    until(right, "the rows in the topic to be the table's", passing=AssertionError)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_change_that_is_followed_while_streaming(source: Source, name: str) -> None:
    case = FOLLOWED[name]
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute(case.change.encode())
        source.connection.execute(case.write.encode())
        producer.caught_up()
        until_right(source, case, producer)
    with running(source) as producer:
        source.connection.execute("INSERT INTO t (id, v) VALUES (101, 'after')")
        producer.caught_up()
    require_right(source, case)
    assert source.recorded().snapshots["public.t"].stopped is None


class ChangesBetweenChunks(ChunkByChunk):
    """Runs `between` once, after the first chunk of t."""

    between: Callable[[], None]
    changed: threading.Event

    def _add(self, feed, began, copy):  # type: ignore[no-untyped-def]
        lsn = super()._add(feed, began, copy)
        if feed.table.name == "public.t" and not self.changed.is_set():
            self.between()
            self.changed.set()
        return lsn


def between_chunks(source: Source, case: Case) -> type[ChangesBetweenChunks]:
    def change() -> None:
        source.connection.execute(case.change.encode())
        source.connection.execute(case.write.encode())

    return type("Changes", (ChangesBetweenChunks,), {"between": staticmethod(change), "changed": threading.Event()})


@pytest.mark.long
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_change_that_is_followed_between_two_chunks(source: Source, name: str) -> None:
    case = FOLLOWED[name]
    session = between_chunks(source, case)
    with running(source, session) as producer:
        until_checked(producer, session.changed.is_set, "the change")
        producer.caught_up()
        until_right(source, case, producer)
    assert source.recorded().snapshots["public.t"].rows >= 20


def reason(source: Source) -> str | None:
    snapshot = source.state().snapshots.get("public.t")
    return snapshot.stopped if snapshot else None


def require_stopped(source: Source, case: Case, producer: Running) -> None:
    """Wait until t has stopped for that reason; the other table continues."""

    def stopped() -> bool:
        producer.check()
        return reason(source) is not None

    until(stopped, "the table to be stopped")
    assert case.stopped is not None
    assert case.stopped in (reason(source) or "")
    before = len(source.records("public.t"))
    source.connection.execute("INSERT INTO u VALUES (1000)")
    source.passes(producer.check)
    assert len(source.records("public.t")) == before
    source.require_equal("public.u")


def require_stopped_still(source: Source, case: Case) -> None:
    """A start publishes nothing of a stopped table, and everything of the other."""
    before = source.records("public.t")
    with running(source) as producer:
        source.connection.execute("INSERT INTO u VALUES (1001)")
        source.passes(producer.check)
    assert source.records("public.t") == before
    assert case.stopped is not None
    assert case.stopped in (reason(source) or "")
    source.require_equal("public.u")


@pytest.mark.parametrize("name", STOPPED)
def test_a_change_that_stops_the_table_while_streaming(source: Source, name: str) -> None:
    case = STOPPED[name]
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET v = 'before' WHERE id = 1")
        before = source.connection.execute("SELECT * FROM t ORDER BY 1").fetchall()
        source.connection.execute(case.change.encode())
        source.connection.execute(case.write.encode())
        require_stopped(source, case, producer)
    # The topic is the table as of the change.
    folded = sorted(tuple(row.values()) for row in fold(source.records("public.t")).values())
    assert folded == [tuple(row) for row in before]
    require_stopped_still(source, case)


@pytest.mark.long
@pytest.mark.parametrize("name", STOPPED)
def test_a_change_that_stops_the_table_between_two_chunks(source: Source, name: str) -> None:
    case = STOPPED[name]
    with running(source, between_chunks(source, case)) as producer:
        until_checked(producer, lambda: reason(source) is not None, "the table to be stopped")
        until_checked(producer, lambda: source.state().snapshots["public.u"].done, "the other table to be copied")
        source.passes(producer.check)
    changed = {(1, "updated"), (99, "w"), (100, "new"), (100, None)}
    copied = {(row["id"], row["v"]) for row in fold(source.records("public.t")).values()}
    before = {(i, f"v{i}") for i in range(1, 31)}
    assert copied == {row for row in before if row[0] <= 5} or (case.copied and copied - before <= changed)
    source.require_equal("public.u")


def until_checked(producer: Running, condition: Callable[[], bool], what: str) -> None:
    def met() -> bool:
        producer.check()
        return condition()

    until(met, what)


@pytest.mark.parametrize("back", [False, True])
def test_stopped_table_is_resnapshotted_once_its_topic_is_deleted(source: Source, back: bool) -> None:
    """Both remedies: with the change kept, and with it reverted."""
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE t ALTER n TYPE text USING 'n' || n")
        source.connection.execute("UPDATE t SET n = 'x' WHERE id = 1")
        require_stopped(source, STOPPED["a number made text"], producer)
    if back:
        source.connection.execute("ALTER TABLE t ALTER n TYPE int USING id")
        # Not before: a start would continue after the omitted changes.
        require_stopped_still(source, STOPPED["a number made text"])
    delete_topics(source.settings.kafka, [topic_of(source.settings, "public.t")])
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET v = 'again' WHERE id = 2")
        producer.caught_up()
    assert reason(source) is None
    source.require_equal("public.t")


def test_columns_that_came_and_went_one_after_the_other_while_no_producer_ran(source: Source) -> None:
    """None of them has a number in the catalog that the stream is compared with; the rows between say what happened."""
    with running(source) as producer:
        producer.caught_up()
    for key, change in enumerate(["ADD a int", "DROP a", "ADD b int", "DROP b"], 100):
        source.connection.execute(f"ALTER TABLE t {change}".encode())
        source.connection.execute("INSERT INTO t (id, v) VALUES (%s, 'new')", (key,))
    with running(source) as producer:
        producer.caught_up()
    assert source.recorded().snapshots["public.t"].stopped is None
    source.require_equal("public.t", ("id", "v"))


class ReadsLate(Session):
    """Does not read the stream until `released` is set."""

    released = threading.Event()

    def _stream_phase(self, until: Lsn | None, seconds: float = 0) -> None:
        if self.released.wait(0.05):
            super()._stream_phase(until, seconds)


def test_producer_stops_table_whose_column_was_added_and_renamed_before_the_stream_came_to_it(source: Source) -> None:
    """The catalog has the column under its new name before the stream has it under the first."""
    ReadsLate.released.set()
    with running(source, ReadsLate) as producer:
        producer.caught_up()
        ReadsLate.released.clear()
        for key, change in enumerate(["ADD a int DEFAULT 7", "RENAME a TO b"], 100):
            source.connection.execute(f"ALTER TABLE t {change}".encode())
            source.connection.execute("INSERT INTO t (id, v) VALUES (%s, 'new')", (key,))
        ReadsLate.released.set()
        until_checked(producer, lambda: reason(source) is not None, "the table to be stopped")
    assert reason(source) == "column a was renamed to b"


def test_a_column_that_takes_the_place_of_one_gone_may_be_that_one(source: Source) -> None:
    """Without a row between them it cannot be known."""
    with running(source) as producer:
        producer.caught_up()
    for key, change in enumerate(["ADD a int", "RENAME a TO b", "DROP b"], 100):
        source.connection.execute(f"ALTER TABLE t {change}".encode())
        source.connection.execute("INSERT INTO t (id, v) VALUES (%s, 'new')", (key,))
    with running(source) as producer:
        until_checked(producer, lambda: reason(source) is not None, "the table to be stopped")
    assert reason(source) == "column a was renamed to b"


@pytest.mark.parametrize("name", ["a column renamed", "another key", "the table dropped", "a number made text"])
def test_a_change_while_no_producer_runs(source: Source, name: str) -> None:
    case = STOPPED[name]
    with running(source) as producer:
        producer.caught_up()
    source.connection.execute(case.change.encode())
    source.connection.execute(case.write.encode())
    with running(source) as producer:
        until_checked(producer, lambda: reason(source) is not None, "the table to be stopped")
        source.connection.execute("INSERT INTO u VALUES (1000)")
        source.passes(producer.check)
    source.require_equal("public.u")
    assert len(source.records("public.t")) == 30
