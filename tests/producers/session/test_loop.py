"""A producer end to end, on real servers: the topic, folded by key, is the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from consumers.testing.waiting import until
from producers.session.loop import Timing
from schemas.events import UNCHANGED
from tests.conftest import Database
from tests.producers.folding import fold, folded_rows, ops, read_topic, states, table_rows
from tests.producers.sources import Source, database_section, running, settings_for

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


def test_table_is_snapshotted_and_followed(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id bigint PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i",
        "public.t",
        snapshot={"chunk_rows": 14},  # two chunks
    )
    connection = source.connection
    with running(source) as producer:
        producer.caught_up()
        assert states(source.require_equal("public.t")) == {"r": 50}
        connection.execute("INSERT INTO t VALUES (100, 1)")
        connection.execute("UPDATE t SET n = 2 WHERE id = 100")
        connection.execute("UPDATE t SET id = 101 WHERE id = 100")
        connection.execute("DELETE FROM t WHERE id = 1")
        producer.caught_up()
    records = source.require_equal("public.t")
    assert ops(records, id=100) == ["c", "u", "d", "tombstone"]
    assert ops(records, id=101) == ["c"]
    assert ops(records, id=1) == ["r", "d", "tombstone"]
    snapshot = source.recorded().snapshots["public.t"]
    assert (snapshot.rows, snapshot.chunks_done, snapshot.chunks, snapshot.done) == (50, 8, 8, True)


KEYS = {
    "composite": ('a int, b text COLLATE "C", c int, PRIMARY KEY (c, b)', "i, chr(64 + i % 7), i / 7, ''", True),
    "uuid": ("a uuid PRIMARY KEY", "md5(i::text)::uuid, ''", True),
    "bytes in order": ('a text COLLATE "C" PRIMARY KEY', "chr(40 + i * 7) || ' tab\t\\' || i, ''", True),
    "another order": ("a text PRIMARY KEY", "'k' || i, ''", True),
    "numbers as text": ("a numeric(9, 2) PRIMARY KEY", "i / 4.0, ''", True),
    "negative": ("a int PRIMARY KEY", "i - 25, ''", True),
}


@pytest.mark.parametrize("kind", KEYS)
def test_tables_with_every_kind_of_key_are_captured(new_source: NewSource, kind: str) -> None:
    columns, values, chunked = KEYS[kind]
    source = new_source(
        f"CREATE TABLE t ({columns}, v text NOT NULL); INSERT INTO t SELECT {values} FROM generate_series(1, 50) i",
        "public.t",
        snapshot={"chunk_rows": 14},  # two chunks
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET v = 'x'")
        source.connection.execute("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 10)")
        producer.caught_up()
    assert states(source.require_equal("public.t")) == {"r": 50, "u": 50, "d": 10, "tombstone": 10}
    assert source.recorded().snapshots["public.t"].chunks_done == (8 if chunked else 1)


def test_covering_primary_key_excludes_its_included_columns(new_source: NewSource) -> None:
    """An index's INCLUDE columns are not part of the key, nor of a delete event."""
    source = new_source(
        "CREATE TABLE t (id int, name text, PRIMARY KEY (id) INCLUDE (name)); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET name = 'c' WHERE id = 1")
        source.connection.execute("DELETE FROM t WHERE id = 2")
        producer.caught_up()
    assert ops(source.require_equal("public.t"), id=1) == ["r", "u"]


def test_partitioned_table_is_captured_as_one_table(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');"
        "CREATE TABLE t_2 (at date NOT NULL, id int NOT NULL);"  # the same columns, in another order
        "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');"
        "INSERT INTO t SELECT i, '2020-12-20'::date + i FROM generate_series(1, 30) i",
        "public.t*",
        table_schemas={"public.t": "gitlab_main"},
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET at = '2021-05-05' WHERE id = 1")  # into the other partition
        source.connection.execute("INSERT INTO t_2 (id, at) VALUES (99, '2021-06-06')")
        source.connection.execute("DELETE FROM t WHERE id = 30")
        producer.caught_up()
        source.require_equal("public.t")
        source.connection.execute("TRUNCATE t")
        source.connection.execute("INSERT INTO t VALUES (5, '2021-06-06')")
        producer.caught_up()
    assert len(source.require_equal("public.t")) > 30
    assert set(source.recorded().snapshots) == {"public.t"}


def test_inheritance_parent_is_captured_without_its_children(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child () INHERITS (t);"
        "INSERT INTO t VALUES (1); INSERT INTO child VALUES (2)",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO child VALUES (3); DELETE FROM child WHERE id = 2")
        source.connection.execute("INSERT INTO t VALUES (4)")
        producer.caught_up()
    assert folded_rows(source.records("public.t")) == [("1",), ("4",)]


BIG = "string_agg(md5(i::text || '{seed}'), '')"


def test_replica_identity_full_publishes_the_old_row(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, n int, big text); ALTER TABLE t REPLICA IDENTITY FULL;"
        f"INSERT INTO t SELECT 1, 1, {BIG.format(seed='a')} FROM generate_series(1, 500) i",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET n = 2")
        source.connection.execute("UPDATE t SET id = 2")
        source.connection.execute("DELETE FROM t")
        producer.caught_up()
    records = source.require_equal("public.t")
    update = next(record.event for record in records if record.op == "u")
    assert update is not None
    assert update.before is not None
    assert update.after is not None
    assert (update.before["n"], update.after["n"]) == (1, 2)
    assert update.before["big"] == update.after["big"] != UNCHANGED
    assert ops(records, id=1) == ["r", "u", "d", "tombstone"]
    assert ops(records, id=2) == ["c", "d", "tombstone"]


def test_unchanged_large_value_is_left_out(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, n int, big text);"
        f"INSERT INTO t SELECT 1, 1, {BIG.format(seed='a')} FROM generate_series(1, 500) i",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET n = 2")
        producer.caught_up()
    (update,) = [record.event for record in source.require_equal("public.t") if record.op == "u"]
    assert update is not None
    assert update.after == {"id": 1, "n": 2, "big": UNCHANGED}


def test_changed_key_keeps_its_large_value(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, big text);"
        f"INSERT INTO t SELECT 1, {BIG.format(seed='a')} FROM generate_series(1, 500) i",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("UPDATE t SET id = 2")
        until(lambda: len(source.records("public.t")) == 5, "the row to be read")
    assert UNCHANGED not in [value for row in fold(source.records("public.t")).values() for value in row.values()]


def test_truncated_table_is_empty_and_refilled(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY REFERENCES t);"
        "INSERT INTO t SELECT generate_series(1, 20); INSERT INTO u SELECT generate_series(1, 20)",
        "public.t",
        "public.u",
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("TRUNCATE t CASCADE")
        source.connection.execute("INSERT INTO t VALUES (1), (30)")
        producer.caught_up()
    records = source.require_equal("public.t")
    assert states(records) == {"r": 20, "t": 2, "c": 2}  # one truncate a partition
    source.require_equal("public.u")


ODD = "Odd-One.a\"b'%sä"
DOTTED = "public. a b.c*"
"""The table's own name has blanks, a dot and a star."""


def test_tables_and_columns_may_have_any_name(new_source: NewSource) -> None:
    source = new_source(
        """CREATE SCHEMA "Odd-One"; CREATE TABLE "Odd-One"."a""b'%sä" (
        "select" int PRIMARY KEY, "a-b" text, "a.b" text, "A_b" text, "1st" int, "é" text, "x y" text, "%s" int);
        INSERT INTO "Odd-One"."a""b'%sä" VALUES (1, 'a', 'b', 'c', 4, 'd', 'e', 5);
        CREATE TABLE " a b.c*" (id int PRIMARY KEY, v text); INSERT INTO " a b.c*" VALUES (1, 'v')""",
        ODD,
        DOTTED,
        table_schemas={ODD: "gitlab_main", DOTTED: "gitlab_main"},
    )
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("""UPDATE "Odd-One"."a""b'%sä" SET "a.b" = 'B', "%s" = 6""".encode())
        producer.caught_up()
    assert states(source.require_equal(ODD)) == {"r": 1, "u": 1}
    assert states(source.require_equal(DOTTED)) == {"r": 1}


def test_empty_table_is_done_at_once(new_source: NewSource) -> None:
    source = new_source("CREATE TABLE t (id int PRIMARY KEY, n int)", "public.t")
    with running(source) as producer:
        producer.caught_up()
        assert source.records("public.t") == []
        source.connection.execute("INSERT INTO t VALUES (1, NULL)")
        producer.caught_up()
    assert states(source.require_equal("public.t")) == {"c": 1}


def test_every_type_is_encoded_alike_from_copy_and_stream(new_source: NewSource) -> None:
    """A smoke test: the codec has its own tests."""
    source = new_source(
        "CREATE TYPE mood AS ENUM ('sad', 'o,k'); CREATE DOMAIN tiny AS int CHECK (VALUE < 9);"
        "CREATE TABLE t (id int PRIMARY KEY, b bool, s smallint, i int, l bigint, o oid, r real, d float8, n numeric,"
        " n2 numeric(10, 3), t text, v varchar(9), c char(2), by bytea, da date, ti time, tz timetz, ts timestamp,"
        " tstz timestamptz, iv interval, u uuid, j json, jb jsonb, ia int[], ta text[], ra int4range, ine inet,"
        " m macaddr, bi bit(3), mo mood, dom tiny, p point, name name, money money);"
        "INSERT INTO t (id) VALUES (1);"
        "INSERT INTO t VALUES (2, true, -3, 4, 5000000000, 4000000000, 0.5, -1.5, 'NaN', 12.345, E'tab\\t\\\\nl\\nü',"
        " '', 'ab', '\\x00ff', '2024-02-29', '24:00', '10:00+05', 'infinity', '2024-01-01 10:00:00.5+03',"
        " '1 year 2 days -03:00', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{\"a\": [1,  null]}', '{\"a\": 1}',"
        " '{1,NULL,3}', '{\"a,b\"}', '[1,9)', '10.0.0.1/8', '08:00:2b:01:02:03', '101',"
        " 'o,k', 7, '(1,2)', 'n', 12.5);"
        "INSERT INTO t (id, da, ts, tstz, n2) VALUES (3, '0044-03-15 BC', '12024-01-01', '-infinity', 'NaN')",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        source.require_equal("public.t")
        source.connection.execute("UPDATE t SET id = id + 10")
        producer.caught_up()
    records = source.require_equal("public.t")
    for key in (1, 2, 3):
        read, created = (
            next(
                record.event.after
                for record in records
                if record.event and record.op == op and record.key == {"id": at}
            )
            for op, at in (("r", key), ("c", key + 10))
        )
        assert read is not None
        assert created is not None
        assert {**read, "id": 0} == {**created, "id": 0}


def test_two_sources_run_at_once(
    bootstrap_servers: str, prefix: str, new_databases: Callable[[str | None], Database]
) -> None:
    sections: dict[str, Any] = {}
    connections = {}
    for name in ("main", "ci"):
        database = new_databases(None)
        connection = database.connect()
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        connection.execute("INSERT INTO t SELECT i, %s FROM generate_series(1, 20) i", (name,))
        section = database_section(
            database.dsn, "public.t", gitlab_schemas=[f"gitlab_{name}"], table_schemas={"public.t": f"gitlab_{name}"}
        )
        sections[name] = section
        connections[name] = connection
    settings = settings_for(bootstrap_servers, prefix, "", "public.t")
    settings = type(settings)(prefix=prefix, kafka=settings.kafka, databases=sections)
    main, ci = (Source(settings, connection, name) for name, connection in connections.items())
    with running(main) as first, running(ci) as second:
        main.connection.execute("INSERT INTO t VALUES (21, 'main')")
        ci.connection.execute("DELETE FROM t WHERE id > 10")
        first.caught_up()
        second.caught_up()
    main.require_equal("public.t")
    records = read_topic(settings, f"{prefix}.gitlab_ci.t")
    assert folded_rows(records) == table_rows(ci.connection, "public.t")


def test_heartbeats_advance_an_idle_slot_to_the_recorded_position(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE busy (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
        "public.t",
    )
    with running(source) as producer:
        producer.caught_up()
        before = source.slot_state().confirmed_flush
        assert before is not None
        # Nothing of the following is published.
        source.connection.execute("INSERT INTO busy SELECT generate_series(1, 10000)")
        written = source.connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert written is not None

        def moved() -> bool:
            producer.check()
            confirmed = source.slot_state().confirmed_flush
            stream = source.recorded().stream
            assert stream is not None
            assert confirmed is not None
            assert confirmed <= stream.confirmed_lsn
            return confirmed >= int(written[0])

        until(moved, "the slot to follow the heartbeats")


def test_transaction_larger_than_a_kafka_transaction_is_published(new_source: NewSource) -> None:
    timing = Timing(frames=70, commit_events=500)
    source = new_source("CREATE TABLE t (id int PRIMARY KEY, v text)", "public.t", timing=timing)
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 3000) i")
        source.connection.execute("DELETE FROM t WHERE id > 100")
        producer.caught_up()
    records = source.require_equal("public.t")
    assert states(records) == {"c": 3000, "d": 2900, "tombstone": 2900}
