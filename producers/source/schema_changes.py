"""Decides whether a schema change of a table can be followed in its topic: pure rules, no I/O.

A change is followed if every row in the topic still matches the table, so that only rows written from now on have the
new form. Every other change stops the table, for the reason that `obstacle` returns. All changes are listed in
docs/reference/events.md, section "Schema changes".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from producers.source.tables import CapturedTable
from schemas.column_types import column_type
from schemas.errors import Refused
from schemas.events import Relation
from schemas.lazy_dataclass import dataclass

_WHOLE: Final = frozenset({20, 21, 23})
_BINARY_FRACTION: Final = frozenset({700, 701})
_TEXT: Final = frozenset({25, 1043})


class TableStopped(Refused):
    """Revert or keep the change, then re-snapshot the table with `headrace snapshot TABLE --from-scratch`."""


@dataclass(frozen=True)
class FollowedColumn:
    """A column as its values are in the topic; `number` is its attnum, which a rename keeps.

    Where the catalog was ahead, and lacked the column, the number is not known: 0, or the negative of the highest that
    it can be. A column with a higher one was added later.
    """

    number: int
    type_oid: int


@dataclass(frozen=True)
class TableNow:
    """A table in the current catalog, perhaps ahead of the stream.

    `numbers` is column name → attnum; `filled` are columns that got a value in existing rows when they were added, by a
    default; `unique` are the sets of NOT NULL columns with a unique index; `types` is column name → type oid.
    `generated` columns are not captured, so they are not in `numbers`. `readable`: this role sees all rows. `last` is
    the highest attnum ever used, also by a dropped column; 0 if not known.
    """

    name: str
    numbers: Mapping[str, int]
    filled: frozenset[str]
    unique: frozenset[frozenset[str]]
    published: bool
    types: Mapping[str, int]
    generated: frozenset[str] = frozenset()
    readable: bool = True
    last: int = 0


Followed = Mapping[str, FollowedColumn]
"""Column name → its followed state; empty if nothing is known yet."""

NOTHING: Final[Followed] = {}


def follow(relation: Relation, followed: Followed, now: TableNow | None) -> Followed:
    """Return the followed columns once the table has those of `relation`."""
    numbers, unknown = (now.numbers, -now.last) if now is not None else ({}, 0)
    before = {name: each.number for name, each in followed.items()}
    return {
        column.name: FollowedColumn(
            numbers.get(column.name) or before.get(column.name) or unknown,
            column.type_oid,
        )
        for column in relation.columns
    }


def obstacle(
    table: CapturedTable, relation: Relation, followed: Followed, now: TableNow | None, gone: Followed = NOTHING
) -> str | None:
    """Return why events of the table cannot follow those in its topic, None if they can.

    `relation` is the table as the event describes it, `now` as in the catalog (None: it was dropped); see `renamed`.
    """
    if relation.qualified_name != table.name:
        return f"it was renamed to {relation.qualified_name}"
    names = {column.name for column in relation.columns}
    if missing := [name for name in table.key if name not in names]:
        return _key_column_missing(missing[0], now)
    if (reason := _identity(table, relation)) is not None:
        return reason
    for column in relation.columns:
        was = followed.get(column.name)
        if was is not None and not _same_type(was.type_oid, column.type_oid):
            return _other_type(column.name)
    if (reason := renamed(relation, followed, now, gone)) is not None:
        return reason
    # Last, since it may be about a later change.
    return None if now is None else current_obstacle(table, now)


def current_obstacle(table: CapturedTable, now: TableNow | None) -> str | None:
    """Return why the table, as it is now, is not the captured one: no event may show that."""
    if now is None:
        return "it was dropped"
    if now.name != table.name:
        return f"it was renamed to {now.name}"
    if frozenset(table.key) not in now.unique:
        return f"its key ({', '.join(table.key)}) no longer has a unique index over NOT NULL columns"
    if not now.published:
        return "it was removed from the publication"
    return _retyped(table, now)


def filled_columns(relation: Relation, followed: Followed, now: TableNow | None) -> list[str]:
    """Return the added columns whose values the table's rows have and the topic's rows lack."""
    if not followed or now is None:
        return []
    return [column.name for column in relation.columns if column.name not in followed and column.name in now.filled]


def _key_column_missing(column: str, now: TableNow | None) -> str:
    if now is not None and column in now.numbers:
        return f"the stream has a change from before key column {column} was given this name"
    return f"key column {column} no longer exists"


def _identity(table: CapturedTable, relation: Relation) -> str | None:
    if relation.replica_identity == "f":
        return None
    if left_out := [name for name in table.key if name not in relation.identity_columns]:
        return f"its replica identity leaves out key column {left_out[0]}"
    was = table.relation
    if was.replica_identity == relation.replica_identity == "d" and set(was.identity_columns) == set(table.key) != set(
        relation.identity_columns
    ):
        return f"its primary key changed from ({', '.join(table.key)}) to ({', '.join(relation.identity_columns)})"
    return None


def _same_type(was: int, now: int) -> bool:
    """Whether a value of both types has the same text in both.

    producers.publish.silent_changes detects changed values and changes of the type modifier. A numeric's modifier is in
    the Avro type, so the registry checks it too.
    """
    if was == now or any({was, now} <= group for group in (_WHOLE, _BINARY_FRACTION, _TEXT)):
        return True
    return was in _WHOLE and now == 701 and was != 20


def _retyped(table: CapturedTable, now: TableNow) -> str | None:
    """Return which column has a type that the topic cannot follow; an event may show that only much later."""
    for column in table.relation.columns:
        was, type_oid = column.type_oid, now.types.get(column.name, column.type_oid)
        if not _same_type(was, type_oid):
            return _other_type(column.name)
        if column.name in table.key and column_type(was).key != column_type(type_oid).key:
            return f"key column {column.name} changed its type"
    return None


def _other_type(name: str) -> str:
    return f"column {name} changed its type, so its values in the topic no longer match"


def renamed(relation: Relation, followed: Followed, now: TableNow | None, gone: Followed = NOTHING) -> str | None:
    """Return which followed column was renamed, None if those that `relation` lacks were dropped.

    The catalog may be ahead of `relation` and lack columns in it; or the followed columns were read from the catalog,
    and the stream is behind it. Columns are in the order of their numbers, except in a partition. `gone` are columns
    that earlier records have and the table's last version lacks.
    """
    names = [column.name for column in relation.columns]
    for old in sorted({*followed, *gone} - set(names)):
        number = followed[old].number if old in followed else gone[old].number
        called = None if now is None else next((name for name, each in now.numbers.items() if each == number), None)
        if called not in (None, old):
            return f"column {old} was renamed to {called}"
        if now is None and old not in followed:
            continue
        for new in sorted(set(names) - followed.keys()):
            if now is None or (number <= 0 and not (number < 0 and now.numbers.get(new, 0) > -number)):
                return f"column {old} was renamed to {new}"
            if new in now.numbers or (new in gone and 0 < gone[new].number != number):
                continue
            if called == old and _may_be(number, names, new, now):
                return f"a change in the stream has column {new} in place of {old}: one may be a rename of the other"
    return None


def _may_be(number: int, names: Sequence[str], name: str, now: TableNow) -> bool:
    """Whether a column that the catalog lacks may have this number, by its neighbours."""
    place = names.index(name)
    before = [now.numbers[each] for each in names[:place] if each in now.numbers]
    after = [now.numbers[each] for each in names[place:] if each in now.numbers]
    return max(before, default=0) < number and all(number < each for each in after)
