"""Changes of the partitions of a table: in no event of the stream, whatever rows come and go by them."""

from __future__ import annotations

from random import Random
from typing import Final

from tests.fuzz.acts import Act
from tests.fuzz.changes import Change, Setting, acts
from tests.fuzz.shapes import STEP, Partition, Table, bounds, row

_SAYS: Final = "partition"


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
    if random.random() < 0.3:
        del steps[-1]
        table.partitions.remove(partition)
    return acts(random, "detach a partition", table, setting, steps, _SAYS)


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
    made = acts(random, f"attach {'an unlogged' if unlogged else 'a'} partition", table, setting, steps, _SAYS)
    insert = f"INSERT INTO {table.sql} ({columns}) VALUES ({row(random, table, setting.codec)}) ON CONFLICT DO NOTHING"
    return [*made, Act("write", (insert,))]


def drop_partition(random: Random, table: Table, setting: Setting) -> list[Act]:
    partition = random.choice(table.partitions)
    table.partitions.remove(partition)
    return acts(random, "drop a partition", table, setting, [f"DROP TABLE {table.leaf(partition)}"], _SAYS)


def truncate_partition(random: Random, table: Table, setting: Setting) -> list[Act]:
    leaf = table.leaf(random.choice(table.partitions))
    return acts(random, "truncate a partition", table, setting, [f"TRUNCATE {leaf}"], _SAYS, "truncate")


def change_partition_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    leaf = table.leaf(random.choice(table.partitions))
    steps = [f"ALTER TABLE {leaf} REPLICA IDENTITY {random.choice(('FULL', 'DEFAULT'))}"]
    return acts(random, "change a partition's identity", table, setting, steps, _SAYS, "identity")


def unlog_partition(random: Random, table: Table, setting: Setting) -> list[Act]:
    leaf = table.leaf(random.choice(table.partitions))
    steps = [f"ALTER TABLE {leaf} SET UNLOGGED", f"ALTER TABLE {leaf} SET LOGGED"]
    return acts(random, "unlog a partition", table, setting, steps[: random.randrange(1, 3)], _SAYS, "unlogged")


PARTITION_CHANGES: Final[tuple[Change, ...]] = (
    detach_and_attach,
    detach_and_attach,
    attach,
    drop_partition,
    truncate_partition,
    change_partition_identity,
    unlog_partition,
)
