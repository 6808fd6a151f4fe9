"""The base class of a migration that fills a new column in three releases (seed 004).

A backfill only declares its column. `headrace schema expand` adds the column, this migration sets the value in rows
that have none, and `headrace schema contract` forbids rows without one. consumers/schema/plan.py has the statements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Final, LiteralString

import psycopg
from psycopg import sql
from pydantic import Field

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Cursor, Migration, Options
from infra.postgres.key_order import Operators, compared, default_operators
from infra.postgres.parameters import array_parameter
from schemas.errors import Refused
from schemas.events import UNCHANGED, ChangeEvent, Op

_DELETED: Final = Skip("deleted")
_TRUNCATED: Final = Skip("truncated")
_HAS_ONE: Final = Skip("has a value")

_NAME_BYTES: Final = 63
"""The maximum length of a name in PostgreSQL, which truncates longer ones."""


class NotExpanded(Refused):
    """Add the column first with `headrace schema expand`."""


class BackfillOptions(Options):
    """Limits for altering the table."""

    not_deciding: ClassVar[tuple[str, ...]] = ("lock_timeout_ms", "patience_seconds")
    lock_timeout_ms: int = Field(default=100, ge=1)
    """How long a statement waits for a lock, during which all later lock requests wait too."""
    patience_seconds: float = Field(default=600, gt=0)
    """How long the command retries before it fails. Running it again continues."""


class Backfill(Migration):
    """Sets the value of a column in every row that has none.

    It is continuous, since an application that does not know the column keeps adding rows without a value.
    """

    table: ClassVar[str]
    """The table, as `schema.table`. It may be partitioned."""

    key: ClassVar[tuple[tuple[str, LiteralString], ...]]
    """The columns of the table's key, each with its type. Qualify types that are not built in."""

    column: ClassVar[str]
    column_type: ClassVar[LiteralString]
    """The column's type. Qualify a type that is not built in."""

    value: ClassVar[object]
    """The value for rows that have none."""

    checks: ClassVar[tuple[tuple[str, LiteralString], ...]] = ()
    """Check constraints `expand` adds, as (name, SQL condition). `length` becomes check_<table>_<column>_length."""

    continuous = True
    options_type = BackfillOptions
    options: BackfillOptions

    def __init_subclass__(cls) -> None:
        """Derive the declarations every migration needs."""
        super().__init_subclass__()
        # Discovery reports an invalid declaration (consumers/contract/declarations.py), not the class definition.
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            cls.tables = (cls.table,)
            cls.columns = (*dict(cls.key), cls.column)
            cls.optional_columns = (cls.column,)

    @classmethod
    def identifier(cls) -> sql.Identifier:
        """Return the table's name for a statement."""
        return sql.Identifier(*cls.table.split(".", 1))

    @classmethod
    def constraint(cls, check: str) -> str:
        """Return the constraint name of a check, as in the seed; its beginning is truncated to PostgreSQL's limit."""
        table = cls.table.split(".", 1)[1]
        front = f"check_{table}_{cls.column}".encode()[: _NAME_BYTES - len(check) - 1]
        return f"{front.decode(errors='ignore')}_{check}"

    def decide(self, event: ChangeEvent) -> Decision:
        """Change a row that has no value in the event; see Migration.decide."""
        row = event.after
        if row is None:
            return _TRUNCATED if event.op is Op.TRUNCATE else _DELETED
        # An event from before the column was added has no value either.
        value = row.get(self.column)
        if value is not None and value is not UNCHANGED:
            return _HAS_ONE
        return Change(tuple(row[name] for name, _ in self.key))

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Set the value in rows that still have none; see Migration.apply."""
        # In key order, so that two consumers do not deadlock.
        keys: list[Any] = sorted({change.key for change in changes})
        try:
            cursor.execute(
                _update(type(self), _operators(cursor, type(self))),
                (self.value, *map(array_parameter, zip(*keys, strict=True))),
            )
        except psycopg.errors.UndefinedColumn as error:
            raise NotExpanded(
                f"{self.table} has no column {self.column}", remedy=f"add it with `headrace schema expand {self.name}`"
            ) from error
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        """Count the rows without a value; all rows if the column does not exist."""
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attname = %s AND NOT attisdropped)",
            (self.identifier().as_string(cursor), self.column),
        )
        there = cursor.fetchone() == (True,)
        condition = sql.SQL("{} IS NULL").format(sql.Identifier(self.column)) if there else sql.SQL("true")
        cursor.execute(sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self.identifier(), condition))
        row = cursor.fetchone()
        assert row is not None
        return int(row[0])


_OPERATORS: Final[dict[type[Backfill], tuple[Operators, ...]]] = {}


def _operators(cursor: Cursor, kind: type[Backfill]) -> tuple[Operators, ...]:
    """Return the key's operators, looked up once; empty if all its types are built in."""
    if all("." not in of_type for _, of_type in kind.key):
        return ()
    if kind not in _OPERATORS:
        row = cursor.execute("SELECT %s::regclass::oid::bigint", (kind.identifier().as_string(cursor),)).fetchone()
        assert row is not None
        _OPERATORS[kind] = default_operators(cursor.connection, row[0], list(dict(kind.key)))
    return _OPERATORS[kind]


@cache
def _update(kind: type[Backfill], operators: tuple[Operators, ...]) -> sql.Composed:
    names = [sql.Identifier(name) for name, _ in kind.key]
    return sql.SQL(
        "UPDATE {table} AS t SET {column} = %s FROM unnest({arrays}) AS wanted ({names})"
        " WHERE {keys} AND t.{column} IS NULL"
    ).format(
        table=kind.identifier(),
        column=sql.Identifier(kind.column),
        arrays=sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(of_type)) for _, of_type in kind.key),
        names=sql.SQL(", ").join(names),
        keys=compared(
            [sql.Identifier("t", name) for name, _ in kind.key],
            "=",
            [sql.Identifier("wanted", name) for name, _ in kind.key],
            operators,
        ),
    )
