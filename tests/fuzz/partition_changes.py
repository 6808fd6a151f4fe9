"""Changes of a table's partitions: the stream has no event for them, whatever rows they add or remove."""

from __future__ import annotations

from random import Random
from typing import Final

from tests.fuzz import reasons
from tests.fuzz.acts import Act
from tests.fuzz.changes import Change, Setting, acts
from tests.fuzz.shapes import STEP, Partition, Table, bounds, names_of, row


def detach_and_attach(random: Random, table: Table, setting: Setting) -> list[Act]:
    partition = random.choice(table.partitions)
    leaf = table.leaf(partition)
    steps = [
        f"ALTER TABLE {table.sql} DETACH PARTITION {leaf}",
        f"ALTER TABLE {table.sql} ATTACH PARTITION {leaf} {bounds(partition)}",
    ]
    key = table.columns[next(at for at, each in enumerate(table.columns) if each.name == "id")].sql
    edits = [f"DELETE FROM {leaf} WHERE {key} % 2 = 0", f"UPDATE {leaf} SET {key} = {key} + 1 WHERE {key} % 10 = 3"]
    if random.random() < 0.7:
        steps.insert(1, random.choice(edits))
    if random.random() < 0.3 and len(table.partitions) > 1:
        del steps[-1]
        table.partitions.remove(partition)
    return acts(random, "detach a partition", table, setting, steps)


def attach(random: Random, table: Table, setting: Setting) -> list[Act]:
    number = max((each.number or 0) for each in table.partitions) + 1
    partition = Partition(table.new_name("attached "), number)
    leaf = table.leaf(partition)
    columns = ", ".join(column.sql for column in table.written)
    values = row(random, table, setting.codec)
    unlogged = "UNLOGGED " if random.random() < 0.3 else ""
    key = next(column.sql for column in table.columns if column.name == "id")
    steps = [
        f"CREATE {unlogged}TABLE {leaf} (LIKE {table.sql} INCLUDING ALL)",
        f"INSERT INTO {leaf} ({columns}) VALUES ({values})",
        f"UPDATE {leaf} SET {key} = {number * STEP + 5}",
        f"ALTER TABLE {table.sql} ATTACH PARTITION {leaf} {bounds(partition)}",
    ]
    table.partitions.append(partition)
    justified = _unlogged(table, partition) if unlogged else ()
    repairs = [f"ALTER TABLE {leaf} SET LOGGED"] if unlogged else []
    what = f"attach {'an unlogged' if unlogged else 'a'} partition"
    made = acts(random, what, table, setting, steps, *justified, repairs=repairs)
    insert = f"INSERT INTO {table.sql} ({columns}) VALUES ({row(random, table, setting.codec)}) ON CONFLICT DO NOTHING"
    return [*made, Act("write", (insert,))]


def drop_partition(random: Random, table: Table, setting: Setting) -> list[Act]:
    partition = random.choice(table.partitions)
    if len(table.partitions) > 1:
        table.partitions.remove(partition)
    return acts(random, "drop a partition", table, setting, [f"DROP TABLE {table.leaf(partition)}"])


def truncate_partition(random: Random, table: Table, setting: Setting) -> list[Act]:
    leaf = table.leaf(random.choice(table.partitions))
    return acts(random, "truncate a partition", table, setting, [f"TRUNCATE {leaf}"])


def change_partition_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    leaf = table.leaf(random.choice(table.partitions))
    identity = random.choice(("FULL", "DEFAULT"))
    step = f"ALTER TABLE {leaf} REPLICA IDENTITY {identity}"
    justified: tuple[str, ...] = ()
    if identity == "FULL":
        justified = reasons.virtual_in_identity(table.qualified, [column.name for column in table.virtual])
    repairs = [f"ALTER TABLE {leaf} REPLICA IDENTITY DEFAULT"]
    what = "change a partition's identity"
    return acts(random, what, table, setting, [step], *justified, repairs=repairs, unwritable=bool(justified))


def lose_partition_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    leaf = table.leaf(random.choice(table.partitions))
    steps = [f"ALTER TABLE {leaf} REPLICA IDENTITY {identity}" for identity in ("NOTHING", "DEFAULT")]
    justified = reasons.partition_without_identity(table.qualified, names_of(table.keys))
    return acts(
        random,
        "lose a partition's identity",
        table,
        setting,
        steps[: random.randrange(1, 3)],
        *justified,
        repairs=steps[1:],
        unwritable=True,
        undone=True,
    )


def unlog_partition(random: Random, table: Table, setting: Setting) -> list[Act]:
    partition = random.choice(table.partitions)
    leaf = table.leaf(partition)
    steps = [f"ALTER TABLE {leaf} SET UNLOGGED", f"ALTER TABLE {leaf} SET LOGGED"]
    justified = _unlogged(table, partition)
    kept = steps[: random.randrange(1, 3)]
    return acts(random, "unlog a partition", table, setting, kept, *justified, repairs=steps[1:], undone=True)


def _unlogged(table: Table, partition: Partition) -> tuple[str, ...]:
    return reasons.not_followed(table.qualified, reasons.unlogged(f"{table.schema}.{partition.name}"))


PARTITION_CHANGES: Final[tuple[Change, ...]] = (
    detach_and_attach,
    detach_and_attach,
    attach,
    drop_partition,
    truncate_partition,
    change_partition_identity,
    lose_partition_identity,
    unlog_partition,
)
