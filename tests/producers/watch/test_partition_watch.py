"""Partitions added, removed or changed without events, on a real server: the topic still equals the table.

Each case has its own table, and all share one source. The statements of `change` run in one go, each in its own
transaction, so that reverted changes are reverted before the next check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest

from consumers.testing.waiting import until
from producers.source.partitions import read_partitions
from schemas.events import UNCHANGED, Op
from tests.producers.between_chunks import ChunkByChunk
from tests.producers.folding import folded_rows, states, table_rows
from tests.producers.sources import OFTEN, Running, Source, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

MADE = """
CREATE TABLE {t} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES FROM (0) TO (100);
CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES FROM (100) TO (200);
INSERT INTO {t} SELECT i, 'v' || i FROM generate_series(0, 199, 20) i;
CREATE TABLE {t}_3 (v text, gone int, id int NOT NULL);
ALTER TABLE {t}_3 DROP gone;
INSERT INTO {t}_3 SELECT 'w' || i, i FROM generate_series(200, 299, 20) i
"""
EDITED = (
    "INSERT INTO {t}_1 (id, v) VALUES (7, 'new'); UPDATE {t}_1 SET v = 'edited' WHERE id = 20;"
    "DELETE FROM {t}_1 WHERE id = 40"
)
ATTACH_1 = "ALTER TABLE {t} ATTACH PARTITION {t}_1 FOR VALUES FROM (0) TO (100)"
ATTACH_3 = "ALTER TABLE {t} ATTACH PARTITION {t}_3 FOR VALUES FROM (200) TO (300)"
SUB = """
CREATE TABLE {t}_4 PARTITION OF {t} FOR VALUES FROM (400) TO (500) PARTITION BY HASH (id);
CREATE TABLE {t}_41 PARTITION OF {t}_4 FOR VALUES WITH (MODULUS 1, REMAINDER 0)
"""

CHANGES = {
    "attached": f"{ATTACH_3}; UPDATE {{t}} SET v = 'x' WHERE id IN (220, 20)",
    "created": "CREATE TABLE {t}_4 PARTITION OF {t} FOR VALUES FROM (300) TO (400); INSERT INTO {t} VALUES (300, 'n');"
    "CREATE TABLE {t}_5 PARTITION OF {t} DEFAULT; INSERT INTO {t} VALUES (-1, 'n')",
    "detached concurrently": "ALTER TABLE {t} DETACH PARTITION {t}_1 CONCURRENTLY",
    "dropped": "DROP TABLE {t}_1",
    "edited in between": f"ALTER TABLE {{t}} DETACH PARTITION {{t}}_1; {EDITED}; {ATTACH_1}",
    "attached for a moment": f"{ATTACH_3}; INSERT INTO {{t}} VALUES (201, 'n');"
    "ALTER TABLE {t} DETACH PARTITION {t}_3",
    "replaced": "ALTER TABLE {t} DETACH PARTITION {t}_1; UPDATE {t}_3 SET id = id - 195;"
    "ALTER TABLE {t} ATTACH PARTITION {t}_3 FOR VALUES FROM (0) TO (100)",
    "truncated and filled": "TRUNCATE {t}_1; INSERT INTO {t} VALUES (20, 'again'), (21, 'n');"
    "DELETE FROM {t} WHERE id = 21",
    "truncated whole": "TRUNCATE {t}; INSERT INTO {t} VALUES (20, 'again')",
    "truncated, all of them": "TRUNCATE {t}_1, {t}_2; INSERT INTO {t} VALUES (20, 'again')",
    "unlogged for a moment": f"BEGIN; ALTER TABLE {{t}}_1 SET UNLOGGED; {EDITED};"
    "ALTER TABLE {t}_1 SET LOGGED; COMMIT",
    "rows moved": f"{ATTACH_3}; UPDATE {{t}} SET id = id + 1; UPDATE {{t}} SET id = id - 90 WHERE id = 101",
    "part of another": "CREATE TABLE {t}_root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
    "ALTER TABLE {t}_root ATTACH PARTITION {t} FOR VALUES FROM (0) TO (1000);"
    "UPDATE {t}_root SET v = 'x' WHERE id = 20",
    "a tree attached": "CREATE TABLE {t}_4 (id int NOT NULL, v text) PARTITION BY RANGE (id);"
    "CREATE TABLE {t}_41 PARTITION OF {t}_4 FOR VALUES FROM (400) TO (450); INSERT INTO {t}_4 VALUES (401, 'n');"
    "ALTER TABLE {t} ATTACH PARTITION {t}_4 FOR VALUES FROM (400) TO (500); INSERT INTO {t} VALUES (402, 'n')",
    "a tree edited in between": "ALTER TABLE {t} DETACH PARTITION {t}_4; DELETE FROM {t}_41;"
    "INSERT INTO {t}_4 VALUES (402, 'n');"
    "ALTER TABLE {t} ATTACH PARTITION {t}_4 FOR VALUES FROM (400) TO (500)",
}
MORE = {"a tree edited in between": f"{SUB}; INSERT INTO {{t}} VALUES (401, 'o')"}


@pytest.fixture
def new_source(new_source: NewSource) -> NewSource:
    """Its producers check the catalog often."""
    return partial(new_source, timing=OFTEN)


def run(source: Source, statements: str, table: str) -> None:
    for statement in statements.format(t=table).split(";"):
        source.connection.execute(statement.encode())


def followed(source: Source, table: str) -> bool:
    """Whether the recorded partitions are the current ones, and all are copied."""
    row = source.connection.execute("SELECT %s::regclass::oid::bigint", (table,)).fetchone()
    assert row is not None
    state = source.state().snapshots.get(table)
    now = read_partitions(source.connection, [row[0]])[row[0]]
    return state is not None and state.partitions == now.states and not state.under_way


def settled(source: Source, it: Running, *tables: str) -> None:
    source.passes(it.check)
    until(lambda: all(followed(source, table) for table in tables), f"the partitions of {', '.join(tables)}")
    it.caught_up()


def cases(new_source: NewSource, *chosen: str) -> tuple[Source, Mapping[str, str]]:
    """A source that has a table for each of these CHANGES: its name."""
    names = {case: f"t{number}" for number, case in enumerate(chosen)}
    ddl = ";".join((MADE + ";" + MORE.get(case, "SELECT")).format(t=name) for case, name in names.items())
    return new_source(ddl, *(f"public.{name}" for name in names.values()), snapshot={"chunk_rows": 3}), names


def require_right(source: Source, names: Mapping[str, str]) -> None:
    wrong = {}
    for case, name in names.items():
        topic = set(folded_rows(source.records(f"public.{name}"), ("id", "v")))
        table = set(table_rows(source.connection, f"public.{name}", ("id", "v")))
        if topic != table:
            wrong[case] = {"only in the topic": topic - table, "only in the table": table - topic}
    assert not wrong


@pytest.mark.long
def test_partitions_change_while_they_are_streamed(new_source: NewSource) -> None:
    source, names = cases(new_source, *CHANGES)
    with running(source) as it:
        it.caught_up()
        for case, name in names.items():
            run(source, CHANGES[case], name)
        settled(source, it, *(f"public.{name}" for name in names.values()))
        require_right(source, names)
        for name in names.values():
            source.connection.execute(f"UPDATE {name} SET v = v || '!'; DELETE FROM {name} WHERE id % 3 = 0".encode())
        it.caught_up()
    require_right(source, names)
    assert not [name for name, state in source.recorded().snapshots.items() if state.stopped]


@pytest.mark.long
def test_partitions_change_while_no_producer_runs(new_source: NewSource) -> None:
    source, names = cases(
        new_source, "attached", "dropped", "edited in between", "truncated and filled", "unlogged for a moment"
    )
    with running(source) as it:
        it.caught_up()
    for case, name in names.items():
        source.connection.execute(f"UPDATE {name} SET v = v || '!' WHERE id < 50".encode())
        run(source, CHANGES[case], name)
    with running(source) as it:
        settled(source, it, *(f"public.{name}" for name in names.values()))
    require_right(source, names)


INNOCENT = """
VACUUM FULL t_1; CLUSTER t_1 USING t_1_pkey; REINDEX TABLE t_1; CREATE INDEX ON t_1 (v); VACUUM FREEZE t_1;
ALTER TABLE t_1 SET (fillfactor = 50); ANALYZE t; ANALYZE t_1; VACUUM FULL pg_inherits; VACUUM FREEZE pg_inherits;
VACUUM FREEZE pg_class; ALTER TABLE t_1 RENAME TO u_1; CREATE TABLE other (); ALTER TABLE u_1 ALTER v SET STATISTICS 9;
ALTER TABLE t_2 REPLICA IDENTITY FULL
"""


def test_statement_that_keeps_rows_of_partition_causes_no_resnapshot(new_source: NewSource) -> None:
    source = new_source(MADE.format(t="t"), "public.t")
    with running(source) as it:
        it.caught_up()
        run(source, INNOCENT, "t")
        settled(source, it, "public.t")
    run(source, "VACUUM FULL u_1; VACUUM FULL t_2; VACUUM FULL t_3", "t")
    with running(source) as it:
        settled(source, it, "public.t")
    assert states(source.require_equal("public.t")) == {"r": 10}


BETWEEN = {
    "behind what is copied": "CREATE TABLE {t}_0 (id int NOT NULL, v text);"
    "INSERT INTO {t}_0 VALUES (-5, 'n'), (-6, 'n');"
    "ALTER TABLE {t} ATTACH PARTITION {t}_0 FOR VALUES FROM (-10) TO (0); UPDATE {t} SET v = 'x' WHERE id = -6",
    "new and written": ATTACH_3,
    "copied and gone": "ALTER TABLE {t} DETACH PARTITION {t}_1",
}


@pytest.mark.parametrize("key", ["int", "numeric"])
def test_partitions_change_between_two_chunks(new_source: NewSource, key: str) -> None:
    """In a first snapshot, by ranges or, with keys not comparable here, by the re-snapshot rules."""
    names = {case: f"t{number}" for number, case in enumerate(BETWEEN)}
    made = ";".join(MADE.format(t=name) for name in names.values()).replace("id int", f"id {key}")
    tables = [f"public.{name}" for name in names.values()]
    source = new_source(made, *tables, snapshot={"chunk_rows": 3})
    changed: set[str] = set()

    class Changes(ChunkByChunk):
        def _add(self, feed, began, copy):  # type: ignore[no-untyped-def]
            lsn = super()._add(feed, began, copy)
            for case, name in names.items():
                if feed.table.name == f"public.{name}" and case not in changed:
                    run(source, BETWEEN[case].replace("id int", f"id {key}"), name)
                    changed.add(case)
            if feed.table.name == f"public.{names['new and written']}" and not feed.copy.unread:
                # A chunk could have shown it, before its partition's changes are published.
                run(source, "DELETE FROM {t} WHERE id = 240", names["new and written"])
            return lsn

    # It ends because a table is to be re-snapshotted, for which produce would restart it.
    assert Running(source, Changes).restarts() is not None
    with running(source) as it:
        settled(source, it, *tables)
    require_right(source, names)


def test_producer_killed_while_reading_new_partition_completes_it(new_source: NewSource) -> None:
    source = new_source(MADE.format(t="t"), "public.t", snapshot={"chunk_rows": 4})
    with running(source) as it:
        it.caught_up()
    run(source, ATTACH_3, "t")

    class Dies(ChunkByChunk):
        read = 0

        def _add(self, feed, began, copy):  # type: ignore[no-untyped-def]
            self.read += 1
            if self.read == 2:
                raise RuntimeError("killed")
            return super()._add(feed, began, copy)

    assert str(Running(source, Dies).ended()) == "killed"
    state = source.recorded().snapshots["public.t"]
    assert (state.rows, len(state.partitions), state.under_way) == (2, 3, True)
    source.connection.execute("DELETE FROM t WHERE id IN (200, 280)")
    with running(source) as it:
        settled(source, it, "public.t")
    records = source.require_equal("public.t", ("id", "v"))
    assert states(records) == {"r": 10 + 4, "d": 2, "tombstone": 2}


BIG = "(SELECT string_agg(md5(i::text || '{}'), '') FROM generate_series(1, 500) i)"


def test_events_of_partition_follow_its_own_replica_identity(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, n int, big text) PARTITION BY RANGE (id);"
        "ALTER TABLE t REPLICA IDENTITY FULL;"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE t_2 (big text, n int, id int NOT NULL); ALTER TABLE t_2 REPLICA IDENTITY FULL;"
        "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM (100) TO (200);"
        f"INSERT INTO t VALUES (1, 1, {BIG.format('a')}), (101, 1, {BIG.format('b')})",
        "public.t",
    )
    with running(source) as it:
        it.caught_up()
        run(source, "UPDATE {t} SET n = 2; UPDATE {t} SET id = id + 1; DELETE FROM {t}", "t")
        run(source, f"INSERT INTO {{t}} VALUES (5, 1, {BIG.format('a')}), (105, NULL, {BIG.format('b')})", "t")
        # The reverse, with a change before and after it.
        run(source, "ALTER TABLE t_1 REPLICA IDENTITY FULL; ALTER TABLE t_2 REPLICA IDENTITY DEFAULT", "t")
        run(source, "UPDATE {t} SET n = 3; ALTER TABLE t_1 REPLICA IDENTITY DEFAULT; UPDATE {t} SET n = 4", "t")
        it.caught_up()
    records = source.records("public.t")

    def told(key: int) -> list[tuple[str, tuple[str, ...], bool]]:
        """Each event of a key: omitted columns, and whether it has the old row."""
        events = [record.event for record in records if record.key == {"id": key} and record.event]
        rows = [event.before if event.op is Op.DELETE else event.after for event in events]
        left_out = [tuple(n for n, value in (row or {}).items() if value is UNCHANGED) for row in rows]
        return [(e.op.value, left, e.before is not None) for e, left in zip(events, left_out, strict=True)]

    whole: tuple[str, ...] = ()
    assert told(1) == [("r", whole, False), ("u", ("big",), False), ("d", ("n", "big"), True)]
    assert told(2) == [("c", ("big",), False), ("d", ("n", "big"), True)]
    assert told(101) == [("r", whole, False), ("u", whole, True), ("d", whole, True)]
    assert told(102) == [("c", whole, False), ("d", whole, True)]
    assert told(5) == [("c", whole, False), ("u", whole, True), ("u", ("big",), False)]
    assert told(105) == [("c", whole, False), ("u", ("big",), False), ("u", ("big",), False)]


STOPS = {
    "unlogged": ("ALTER TABLE {t}_1 SET UNLOGGED", "its partition public.{t}_1 is unlogged"),
    "identity": (
        "ALTER TABLE {t}_2 REPLICA IDENTITY NOTHING",
        "the replica identity of its partition public.{t}_2 leaves out every column",
    ),
    "another index": (
        "ALTER TABLE {t}_1 ADD UNIQUE (v); ALTER TABLE {t}_1 ALTER v SET NOT NULL;"
        "ALTER TABLE {t}_1 REPLICA IDENTITY USING INDEX {t}_1_v_key; DELETE FROM {t} WHERE id = 20",
        "the replica identity of its partition public.{t}_1 leaves out key column id",
    ),
}


def test_a_partition_that_cannot_be_followed_stops_its_table(new_source: NewSource) -> None:
    names = {case: f"t{number}" for number, case in enumerate(STOPS)}
    part = "CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (301, 'u')"
    made = ";".join(MADE.format(t=name) for name in (*names.values(), "r"))
    source = new_source(f"{part};{made}", "public.u", "public.r", *(f"public.{name}" for name in names.values()))

    def stopped(table: str) -> str | None:
        it.check()
        return source.state().snapshots[f"public.{table}"].stopped

    with running(source) as it:
        it.caught_up()
        for case, name in names.items():
            run(source, STOPS[case][0], name)
        # A captured table attached to another captured one: its rows belong to the other.
        run(
            source,
            "ALTER TABLE r ATTACH PARTITION u FOR VALUES FROM (300) TO (400); INSERT INTO r VALUES (302, 'r')",
            "",
        )
        until(lambda: all(stopped(name) for name in (*names.values(), "u")), "the tables to be stopped")
        for case, name in names.items():
            assert STOPS[case][1].format(t=name) in (stopped(name) or "")
        assert stopped("u") == "it is now a partition of public.r, and its rows are in that topic"
        settled(source, it, "public.r")
        source.require_equal("public.r")
