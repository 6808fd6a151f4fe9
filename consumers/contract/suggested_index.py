"""Suggests indexes for a slow guard of a migration, in `headrace check`. headrace never creates them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from infra.cli.advice import Advice

LIMIT_MS: Final = 1000
"""The time limit for a guard; GitLab's limit for queries of a background migration (seed 003)."""

_EXISTING: Final = """
    SELECT n.nspname, i.relname, x.indisvalid AND x.indisready
           OR EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = x.indexrelid)
      FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace
     WHERE x.indrelid = %(table)s::regclass AND x.indpred IS NULL
       AND (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(x.indkey) WITH ORDINALITY AS k(number, n)
              LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number
             WHERE k.n <= cardinality(%(columns)s::text[])) = %(columns)s::text[]
"""
"""The indexes that start with these columns, and whether each is valid or being built."""

_PARTIAL: Final = """
    SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
     WHERE x.indpred IS NOT NULL AND i.relname = ANY(%s::text[])
"""


@dataclass(frozen=True, slots=True)
class SuggestedIndex:
    """A btree index on `columns` of `table` that finds the rows which satisfy `guard`, an SQL condition.

    A `partial` one has only those rows, so it shrinks as the migration proceeds; its guard must be immutable.
    """

    table: str
    columns: tuple[str, ...]
    guard: LiteralString
    partial: bool = False

    def identifier(self) -> sql.Identifier:
        """Return the table's name for a statement."""
        return sql.Identifier(*self.table.split(".", 1))


def offer(
    connection: psycopg.Connection[Any], where: str, index: SuggestedIndex, limit_ms: int = LIMIT_MS
) -> Advice | None:
    """Return the index as advice if the server takes longer than the limit to find the guard's rows; else None.

    `where` is the migration's place in the settings. The advice includes the guard's plan. There is no advice if such
    an index exists. Changes nothing. Raises psycopg.Error if the guard's query fails.
    """
    named = {"table": index.identifier().as_string(None), "columns": list(index.columns)}
    existing = connection.execute(_EXISTING, named).fetchall()
    if any(of_use for _, _, of_use in existing) and not index.partial:
        return None
    question = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(index.identifier(), sql.SQL(index.guard))
    if not _slow(connection, question, limit_ms) or (index.partial and _uses_partial(connection, question)):
        return None
    plan = tuple(str(line) for (line,) in connection.execute(sql.SQL("EXPLAIN ") + question))
    return Advice(
        where,
        f"the server takes more than {limit_ms} ms to find the remaining rows of {index.table}",
        plan,
        " ".join(_statements(index, [sql.Identifier(schema, name) for schema, name, of_use in existing if not of_use])),
    )


def _uses_partial(connection: psycopg.Connection[Any], question: sql.Composed) -> bool:
    """Return whether there is a partial index for the guard: the planner uses it, at the latest if it has to."""
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('enable_seqscan', 'off', true)")
        row = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) ") + question).fetchone()
    names, plans = set(), [row[0][0]["Plan"]] if row else []
    while plans:
        plan = plans.pop()
        names.add(plan.get("Index Name"))
        plans += plan.get("Plans", ())
    found = connection.execute(_PARTIAL, ([name for name in names if name],)).fetchone()
    return found is not None


def _slow(connection: psycopg.Connection[Any], question: sql.Composed, limit_ms: int) -> bool:
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            # A locked table says nothing about the guard: that raises another error.
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{max(1, limit_ms // 2)}ms",))
            connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{limit_ms}ms",))
            connection.execute(question)
    except psycopg.errors.QueryCanceled:
        return True
    return False


def _statements(index: SuggestedIndex, broken: list[sql.Identifier]) -> Iterator[str]:
    # A failed CREATE INDEX CONCURRENTLY leaves an invalid index, which still costs every writer.
    for name in broken:
        yield sql.SQL("DROP INDEX CONCURRENTLY {};").format(name).as_string(None)
    yield creation(index)


def creation(index: SuggestedIndex) -> str:
    """Return the statement that creates the index."""
    columns = sql.SQL(", ").join(map(sql.Identifier, index.columns))
    rows = sql.SQL(" WHERE {}").format(sql.SQL(index.guard)) if index.partial else sql.SQL("")
    return sql.SQL("CREATE INDEX CONCURRENTLY ON {} ({}){};").format(index.identifier(), columns, rows).as_string(None)
