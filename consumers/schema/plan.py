"""Plans the statements of a backfill's three releases from the state of the database. Does no I/O.

    expand     add the column, without DEFAULT or NOT NULL; its checks NOT VALID, then VALIDATE
    backfill   fill every row, by the migration's consumers
    contract   CHECK (column IS NOT NULL) NOT VALID, then VALIDATE

Each release continues from the current state, so that a killed one is completed by the next. TABLE lists when each may
run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Final

from psycopg import sql

from consumers.contract.backfill import Backfill
from schemas.errors import Refused
from schemas.lazy_dataclass import dataclass

NOT_NULL: Final = "not_null"
"""The check that contract adds: check_<table>_<column>_not_null."""

Table = tuple[str, str]
"""PostgreSQL's schema, and the name."""


class OutOfOrder(Refused):
    """The order is expand, backfill, contract; --down goes in the reverse order."""


class Release(StrEnum):
    """A release of a backfill, or its undoing."""

    EXPAND = "expand"
    BACKFILL = "backfill"
    CONTRACT = "contract"
    CONTRACT_DOWN = "contract --down"
    BACKFILL_DOWN = "backfill --down"
    EXPAND_DOWN = "expand --down"


@dataclass(frozen=True)
class Found:
    """The state of a backfill in a database.

    `column_type`: None if the column does not exist; `right_type`: whether it is the declared type. `checks`
    maps each existing check to the tables in which it is not validated yet, partitions before their parents. `empty`
    counts the rows without a value, and `foreign` those with a value other than the backfill's; None if not counted.
    `begun`: the current run of the migration has read events; `known`: it has had a run.
    """

    column_type: str | None = None
    right_type: bool = True
    checks: Mapping[str, Sequence[Table]] = field(default_factory=dict)
    empty: int | None = None
    foreign: int | None = None
    begun: bool = False
    known: bool = False


@dataclass(frozen=True)
class Step:
    """A statement, in a transaction of its own.

    `exclusive`: it waits for all readers of the table. `reread`: in the same transaction a re-snapshot of the table is
    requested.
    """

    what: str
    statement: sql.Composed
    exclusive: bool = True
    reread: bool = False


def next_step(release: Release, kind: type[Backfill], found: Found) -> Step | None:
    """Return the next statement of `release`; None if it is done."""
    return next(_STEPS[release](kind, found), None)


def refusal(release: Release, kind: type[Backfill], found: Found) -> OutOfOrder | None:
    """Return why `release` may not run now; None if it may."""
    for before, problem, remedy in TABLE[release]:
        if not before(kind, found):
            words = {"table": kind.table, "column": kind.column, "name": kind.name, "empty": f"{found.empty or 0:,}"}
            return OutOfOrder(problem.format(**words), remedy=remedy.format(**words))
    return None


def expanded(kind: type[Backfill], found: Found) -> bool:
    """Whether the column exists and all its checks are validated."""
    return _has_right_column(kind, found) and next_step(Release.EXPAND, kind, found) is None


def _has_right_column(_kind: type[Backfill], found: Found) -> bool:
    return found.column_type is not None and found.right_type


def _no_other_column(_kind: type[Backfill], found: Found) -> bool:
    return found.column_type is None or found.right_type


def _no_empty_rows(kind: type[Backfill], found: Found) -> bool:
    # If the check exists, VALIDATE finds them.
    return kind.constraint(NOT_NULL) in found.checks or not found.empty


def _not_contracted(kind: type[Backfill], found: Found) -> bool:
    return kind.constraint(NOT_NULL) not in found.checks


def _not_begun(_kind: type[Backfill], found: Found) -> bool:
    return not found.begun


def _no_foreign_values(_kind: type[Backfill], found: Found) -> bool:
    return not found.foreign


Condition = Callable[[type[Backfill], Found], bool]

_OTHER_TYPE: Final = (
    _no_other_column,
    "column {column} of {table} does not have the type that {name} declares",
    "rename that column, or correct the declaration",
)
_EXPANDED: Final = (
    expanded,
    "{table} does not have the column {column} with all its checks",
    "run `headrace schema expand {name}` first",
)
_CONTRACTED: Final = (
    _not_contracted,
    "{table} forbids rows without {column}",
    "run `headrace schema contract {name} --down` first",
)

TABLE: Final[Mapping[Release, Sequence[tuple[Condition, str, str]]]] = {
    Release.EXPAND: [_OTHER_TYPE],
    Release.BACKFILL: [_OTHER_TYPE, _EXPANDED],
    Release.CONTRACT: [
        _OTHER_TYPE,
        _EXPANDED,
        (
            _no_empty_rows,
            "{empty} rows of {table} have no {column}",
            "run `headrace schema backfill {name}` first; if more rows keep coming, an application without support for"
            " the column still writes them",
        ),
    ],
    Release.CONTRACT_DOWN: [],
    Release.BACKFILL_DOWN: [_CONTRACTED],
    Release.EXPAND_DOWN: [
        _OTHER_TYPE,
        _CONTRACTED,
        (
            _not_begun,
            "a run of {name} has filled {column} of {table}",
            "run `headrace schema backfill {name} --down` first, so that a later backfill reads all events again",
        ),
        (
            _no_foreign_values,
            "rows of {table} have values of {column} that {name} did not write and that would be lost with the column",
            "move the values elsewhere first, or drop the column manually",
        ),
    ],
}
"""Release → its preconditions in order, each with the error if it does not hold."""


def _expand(kind: type[Backfill], found: Found) -> Iterator[Step]:
    if found.column_type is None:
        yield Step(
            f"added {kind.column} {kind.column_type} to {kind.table}",
            sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
                kind.identifier(), sql.Identifier(kind.column), sql.SQL(kind.column_type)
            ),
            # The topic still has the values of a column that was dropped since, and no event removes them.
            reread=found.known,
        )
    for check, condition in kind.checks:
        yield from _check(kind, found, check, sql.SQL(condition))


def _contract(kind: type[Backfill], found: Found) -> Iterator[Step]:
    yield from _check(kind, found, NOT_NULL, sql.SQL("{} IS NOT NULL").format(sql.Identifier(kind.column)))


def _check(kind: type[Backfill], found: Found, check: str, condition: sql.Composable) -> Iterator[Step]:
    name = kind.constraint(check)
    if name not in found.checks:
        yield Step(
            f"added {name}, for rows written from now on",
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({}) NOT VALID").format(
                kind.identifier(), sql.Identifier(name), condition
            ),
        )
        return
    for schema, table in found.checks[name]:
        yield Step(
            f"validated {name} on {schema}.{table}",
            sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                sql.Identifier(schema, table), sql.Identifier(name)
            ),
            exclusive=False,
        )


def _contract_down(kind: type[Backfill], found: Found) -> Iterator[Step]:
    name = kind.constraint(NOT_NULL)
    if name in found.checks:
        yield Step(
            f"dropped {name}",
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(kind.identifier(), sql.Identifier(name)),
        )


def _expand_down(kind: type[Backfill], found: Found) -> Iterator[Step]:
    if found.column_type is not None:
        yield Step(
            f"dropped {kind.column} of {kind.table}, with its checks",
            sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}").format(kind.identifier(), sql.Identifier(kind.column)),
        )


def _none(_kind: type[Backfill], _found: Found) -> Iterator[Step]:
    return iter(())


_STEPS: Final[Mapping[Release, Callable[[type[Backfill], Found], Iterator[Step]]]] = {
    Release.EXPAND: _expand,
    Release.BACKFILL: _none,
    Release.CONTRACT: _contract,
    Release.CONTRACT_DOWN: _contract_down,
    Release.BACKFILL_DOWN: _none,
    Release.EXPAND_DOWN: _expand_down,
}
