"""Partitions of a table: compared with recorded ones, and read without privileges on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from psycopg import sql

from producers.source.partitions import (
    Change,
    Partition,
    Partitions,
    as_its_table,
    compared,
    identity_obstacle,
    kept_rows,
    obstacle,
    read_partitions,
    within,
)
from schemas.events import Column, Relation
from tests.conftest import Database

ONE, TWO = Partition(1, "public.t_1", "/700", 11), Partition(2, "public.t_2", "/700/701", 12)
ID, V, NEW = Column("id", 23), Column("v", 25), Column("new", 25)


def of(*partitions: Partition) -> Partitions:
    return Partitions({each.oid: each for each in partitions}, seen=800)


def change(added: Iterable[int] = (), gone: Iterable[int] = (), rewritten: Iterable[int] = ()) -> Change:
    return Change(frozenset(added), frozenset(gone), frozenset(rewritten))


CHANGES = {
    "none": ((ONE, TWO), change()),
    "another name and identity": ((replace(ONE, name="public.u", identity=("id",)), TWO), change()),
    "one more": ((ONE, TWO, replace(TWO, oid=3)), change(added=[3])),
    "one less": ((TWO,), change(gone=[1])),
    "attached again": ((replace(ONE, links="/900"), TWO), change(added=[1], gone=[1])),
    "attached again further up": ((ONE, replace(TWO, links="/900/701")), change(added=[2], gone=[2])),
    "another file": ((ONE, replace(TWO, file=99)), change(rewritten=[2])),
    "attached again with another file": ((replace(ONE, links="/9", file=99), TWO), change(added=[1], gone=[1])),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changes_since_recorded_partitions_are_found(kind: str) -> None:
    now, expected = CHANGES[kind]
    assert compared(of(ONE, TWO).states, of(*now)) == expected


def test_obstacle_names_partition_that_cannot_be_followed() -> None:
    key = ("id", "at")
    assert obstacle([ONE, replace(TWO, identity=("at", "id", "more"))], key) is None
    assert obstacle([replace(ONE, identity=())], key) is None
    assert obstacle([replace(ONE, logged=False)], key) == (
        "its partition public.t_1 is unlogged, so its changes are not in the WAL"
    )
    leaves_out = "the replica identity of its partition public.t_1 leaves out key column at"
    assert obstacle([replace(ONE, identity=("id",)), TWO], key) == leaves_out
    partition = Relation(1, "public", "t_1", "i", (ID, V), ("id",))
    assert identity_obstacle(replace(partition, columns=(ID, replace(V, name="at"))), key) == leaves_out
    assert identity_obstacle(partition, key) is None, "it is said of the whole table that its column is gone"
    assert identity_obstacle(partition, ("id",)) is None
    assert identity_obstacle(replace(partition, replica_identity="f", identity_columns=("id", "v")), ("id",)) is None


def test_a_partition_is_described_as_its_table_but_for_its_identity() -> None:
    table = Relation(9, "public", "t", "d", (ID, V), ("id",))
    partition = Relation(1, "other", "t_1", "i", (NEW, V, ID), ("v", "id"))
    assert as_its_table(partition, table) == Relation(9, "public", "t", "i", (ID, V, NEW), ("id", "v"))


@pytest.mark.stack
def test_role_without_privileges_on_partitions_can_select_their_rows(database: Database) -> None:
    connection = database.connect()
    connection.execute(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10) PARTITION BY HASH (id);"
        "CREATE TABLE t_11 PARTITION OF t_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE t_12 PARTITION OF t_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "CREATE TABLE t_2 PARTITION OF t DEFAULT; CREATE TABLE plain (id int);"
        "INSERT INTO t SELECT generate_series(0, 19);"
        "DROP ROLE IF EXISTS only_root; CREATE ROLE only_root; GRANT SELECT ON t TO only_root"
    )
    row = connection.execute("SELECT 't'::regclass::oid::bigint, 'plain'::regclass::oid::bigint").fetchone()
    assert row is not None
    table, plain = row
    shown: dict[str, int] = dict(connection.execute("SELECT relname, oid::bigint FROM pg_class").fetchall())
    before = read_partitions(connection, [table, plain])
    assert before[plain].states == ()
    assert set(before[table].by_oid) == {shown["t_11"], shown["t_12"], shown["t_2"]}
    assert before[table].inner == {shown["t_1"]}
    assert before[table].by_oid[shown["t_11"]].identity == ("id",)

    relation = Relation(table, "public", "t", "d", (ID,), ("id",))
    connection.execute("SET ROLE only_root")
    for chosen, rows in (([shown["t_2"]], 10), ([shown["t_11"], shown["t_12"]], 10), ([], 0), ([plain], 0)):
        query = sql.SQL("SELECT count(*) FROM t WHERE {}").format(within(connection, chosen))
        assert connection.execute(query).fetchone() == (rows,)
    partition, seen = shown["t_2"], before[table].seen
    assert kept_rows(connection, relation, partition, seen)
    assert not kept_rows(connection, relation, partition, seen - (1 << 31))
    connection.execute("RESET ROLE")
    connection.execute("VACUUM FULL t_2")
    assert kept_rows(connection, relation, partition, seen)
    connection.execute("ALTER TABLE t_2 SET UNLOGGED")
    connection.execute("ALTER TABLE t_2 SET LOGGED")
    assert not kept_rows(connection, relation, partition, seen)
    assert compared(before[table].states, read_partitions(connection, [table])[table]).rewritten == {partition}
    connection.execute("DROP OWNED BY only_root; DROP ROLE only_root")
