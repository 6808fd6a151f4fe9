"""Random transactions of an application: rows inserted, changed, moved to other keys, deleted, and undone."""

from __future__ import annotations

from random import Random

from tests.fuzz.acts import Act, Ending
from tests.fuzz.shapes import Table, row, value


def transaction(random: Random, tables: list[Table], codec: str) -> Act:
    """Return a transaction over some of the tables; some statements are in a savepoint."""
    made: list[str] = []
    for _ in range(random.choice((1, 1, 2, 4))):
        table = random.choice(tables)
        statement = _statement(random, table, codec)
        if random.random() < 0.15:
            made += ["SAVEPOINT s", statement, *_few(random, table, codec), "ROLLBACK TO s"]
        else:
            made.append(statement)
    ending = Ending.ROLLBACK if random.random() < 0.07 else Ending.COMMIT
    if random.random() < 0.04:
        ending = Ending.PREPARE
    return Act("write", tuple(made), ending)


def rows(random: Random, table: Table, codec: str, count: int) -> Act:
    """Return a transaction that inserts about `count` rows."""
    return Act("rows", (_insert(random, table, codec, count),), Ending.COMMIT)


def large_transaction(random: Random, table: Table, codec: str) -> Act:
    """Return a transaction that is streamed before its commit, since it exceeds logical_decoding_work_mem."""
    statements = [_insert(random, table, codec, 12) for _ in range(4)]
    statements += ["SAVEPOINT s", _update(random, table, codec, 60)]
    if random.random() < 0.5:
        statements.append("ROLLBACK TO s")
    statements.append(_delete(random, table, 5))
    ending = Ending.ROLLBACK if random.random() < 0.2 else Ending.COMMIT
    return Act("large transaction", tuple(statements), ending)


def _few(random: Random, table: Table, codec: str) -> list[str]:
    return [_statement(random, table, codec) for _ in range(random.randrange(3))]


def _statement(random: Random, table: Table, codec: str) -> str:
    chosen = random.random()
    if chosen < 0.35:
        return _insert(random, table, codec, random.choice((1, 1, 3)))
    if chosen < 0.65 and table.others:
        return _update(random, table, codec, random.choice((1, 1, 4)))
    if chosen < 0.8:
        return _move(random, table, codec)
    if chosen < 0.98:
        return _delete(random, table, random.choice((1, 1, 2)))
    return f"TRUNCATE {table.sql}"


def _insert(random: Random, table: Table, codec: str, count: int) -> str:
    columns = ", ".join(column.sql for column in table.written)
    values = ", ".join(f"({row(random, table, codec)})" for _ in range(count))
    return f"INSERT INTO {table.sql} ({columns}) VALUES {values} ON CONFLICT DO NOTHING"


def _update(random: Random, table: Table, codec: str, count: int) -> str:
    if not table.others:
        return _delete(random, table, 1)
    chosen = random.sample(table.others, min(len(table.others), random.choice((1, 1, 2))))
    changes = ", ".join(f"{column.sql} = {value(random, column, codec)}" for column in chosen)
    return f"UPDATE {table.sql} SET {changes} WHERE {picked(random, table, count)}"


def _move(random: Random, table: Table, codec: str) -> str:
    column = random.choice(table.keys)
    new = value(random, column, codec)
    if column.kind.respelled and random.random() < 0.5:
        new = column.kind.respelled.format(column.sql)
    return f"UPDATE {table.sql} SET {column.sql} = {new} WHERE {picked(random, table, 1)}"


def _delete(random: Random, table: Table, count: int) -> str:
    return f"DELETE FROM {table.sql} WHERE {picked(random, table, count)}"


def picked(random: Random, table: Table, count: int) -> str:
    """Return a condition for some rows, independent of their physical order."""
    order = ", ".join(f'{column.sql}::text COLLATE "C"' for column in table.keys)
    start = f"(SELECT {random.randrange(997)} % greatest(count(*), 1) FROM {table.sql})"
    picked = f"SELECT tableoid, ctid FROM {table.sql} ORDER BY {order} OFFSET {start} LIMIT {count}"
    return f"(tableoid, ctid) IN ({picked})"
