"""A column that a table gets in three releases: its value for every row that has none (seed 004).

A backfill only declares its column. `headrace schema expand` adds it, this migration gives the value to the rows
without one, `headrace schema contract` forbids rows without one; the statements are in consumers/schema/plan.py.
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
from schemas.errors import Refused
from schemas.events import UNCHANGED, ChangeEvent, Op

_DELETED: Final = Skip("deleted")
_TRUNCATED: Final = Skip("truncated")
_HAS_ONE: Final = Skip("has a value")

_NAME_BYTES: Final = 63
"""How long a name may be in PostgreSQL; it cuts off what is longer."""


class NotExpanded(Refused):
    """Add the column first, with `headrace schema expand`."""


class BackfillOptions(Options):
    """How gently the table is altered.

    `lock_timeout_ms`: how long a statement waits for a lock, and keeps all others waiting who come behind it.
    `patience_seconds`: for how long it is tried again; then the command fails, and goes on when it is run again.
    """

    not_deciding: ClassVar[tuple[str, ...]] = ("lock_timeout_ms", "patience_seconds")
    lock_timeout_ms: int = Field(default=100, ge=1)
    patience_seconds: float = Field(default=600, gt=0)


class Backfill(Migration):
    """Give a column its value in every row that has none.

    Goes on for good: as long as an application runs that does not know the column, it adds rows without a value.
    """

    table: ClassVar[str]
    """As `schema.table`; it may be partitioned."""

    key: ClassVar[tuple[tuple[str, LiteralString], ...]]
    """The columns of the table's key, each with its type; one that is not PostgreSQL's own with its schema."""

    column: ClassVar[str]
    column_type: ClassVar[LiteralString]
    """With its schema where it is not PostgreSQL's own."""

    value: ClassVar[object]
    """What a row without a value gets."""

    checks: ClassVar[tuple[tuple[str, LiteralString], ...]] = ()
    """What `expand` makes sure of: a name, and a condition in SQL. `length` becomes check_<table>_<column>_length."""

    continuous = True
    options_type = BackfillOptions
    options: BackfillOptions

    def __init_subclass__(cls) -> None:
        """Derive what every migration declares."""
        super().__init_subclass__()
        # What is wrong with a declaration is said when the class is found (consumers/contract/declarations.py), not
        # here.
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
        """Return the name of a check: the seed's, its front part cut where PostgreSQL allows no more."""
        table = cls.table.split(".", 1)[1]
        front = f"check_{table}_{cls.column}".encode()[: _NAME_BYTES - len(check) - 1]
        return f"{front.decode(errors='ignore')}_{check}"

    def decide(self, event: ChangeEvent) -> Decision:
        """Change a row that has no value as far as the event says; see Migration.decide."""
        row = event.after
        if row is None:
            return _TRUNCATED if event.op is Op.TRUNCATE else _DELETED
        # An event from before the column was added has none either.
        value = row.get(self.column)
        if value is not None and value is not UNCHANGED:
            return _HAS_ONE
        return Change(tuple(row[name] for name, _ in self.key))

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Set the value in the rows that still have none; see Migration.apply."""
        # In the order of the key, so that two members never wait for each other's rows crosswise.
        keys: list[Any] = sorted({change.key for change in changes})
        try:
            cursor.execute(
                _update(type(self), _operators(cursor, type(self))), (self.value, *map(list, zip(*keys, strict=True)))
            )
        except psycopg.errors.UndefinedColumn as error:
            raise NotExpanded(
                f"{self.table} has no column {self.column}", remedy=f"add it with `headrace schema expand {self.name}`"
            ) from error
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        """Count the rows without a value: all of them, as long as there is no such column."""
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
    """Return the key's operators, asked once; none where all its types are PostgreSQL's own."""
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
