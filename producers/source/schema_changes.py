"""What a table's new columns, key or name mean for its topic: pure rules, no I/O.

A change is followed when every row that stands in the topic still says what the table says, so that only the rows
written from now on are of the new form. Every other change stops the table: `obstacle` says in one sentence why. The
table of all changes is in docs/events.md, section "Schema changes".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from producers.source.tables import CapturedTable
from schemas.column_types import column_type
from schemas.errors import Refused
from schemas.events import Relation

_WHOLE: Final = frozenset({20, 21, 23})
_BINARY_FRACTION: Final = frozenset({700, 701})
_TEXT: Final = frozenset({25, 1043})


class TableStopped(Refused):
    """Change the table back or keep the change; then have it read anew with `headrace snapshot TABLE --anew`."""


@dataclass(frozen=True, slots=True)
class FollowedColumn:
    """A column as its values in the topic are; `number` is pg_attribute's attnum, which a rename leaves."""

    number: int
    type_oid: int


@dataclass(frozen=True, slots=True)
class TableNow:
    """A table as the catalog has it now, perhaps ahead of the stream.

    `numbers` is column name → attnum; `filled` are the columns that rows had a value of as soon as they were added, by
    a default; `unique` the sets of not-null columns of which no two rows have the same values; `types` is column name →
    oid of its type. `generated` columns are not captured, and so not in `numbers`. `readable` says that this role sees
    all rows.
    """

    name: str
    numbers: Mapping[str, int]
    filled: frozenset[str]
    unique: frozenset[frozenset[str]]
    published: bool
    types: Mapping[str, int]
    generated: frozenset[str] = frozenset()
    readable: bool = True


Followed = Mapping[str, FollowedColumn]
"""Column name → what is followed of it; empty where nothing is known yet."""


def follow(relation: Relation, followed: Followed, now: TableNow | None) -> Followed:
    """Return what is followed once the table has the columns of `relation`."""
    numbers = now.numbers if now is not None else {}
    return {
        column.name: FollowedColumn(
            numbers.get(column.name, followed[column.name].number if column.name in followed else 0),
            column.type_oid,
        )
        for column in relation.columns
    }


def obstacle(table: CapturedTable, relation: Relation, followed: Followed, now: TableNow | None) -> str | None:
    """Return why events of the table cannot follow those in its topic, None when they can.

    `relation` is the table as the event describes it, `now` as the catalog has it (None: it is gone).
    """
    if relation.qualified_name != table.name:
        return f"it was renamed to {relation.qualified_name}"
    names = {column.name for column in relation.columns}
    if gone := [name for name in table.key if name not in names]:
        return _key_column_missing(gone[0], now)
    if (reason := _identity(table, relation)) is not None:
        return reason
    for column in relation.columns:
        was = followed.get(column.name)
        if was is not None and not _same_type(was.type_oid, column.type_oid):
            return _other_type(column.name)
    if (renamed := _renamed([column.name for column in relation.columns], followed, now)) is not None:
        return renamed
    # Last, since it may speak of a later change than the one at hand.
    return None if now is None else standing_obstacle(table, now)


def standing_obstacle(table: CapturedTable, now: TableNow | None) -> str | None:
    """Return what no event tells: that the table, as it is now, is not what is captured."""
    if now is None:
        return "it was dropped"
    if now.name != table.name:
        return f"it was renamed to {now.name}"
    if frozenset(table.key) not in now.unique:
        return f"no unique index over not-null columns is on its key ({', '.join(table.key)}) any more"
    if not now.published:
        return "it was taken out of the publication"
    return _retyped(table, now)


def filled_columns(relation: Relation, followed: Followed, now: TableNow | None) -> list[str]:
    """Return the added columns of which the rows in the topic lack a value that the table's rows have."""
    if not followed or now is None:
        return []
    return [column.name for column in relation.columns if column.name not in followed and column.name in now.filled]


def _key_column_missing(column: str, now: TableNow | None) -> str:
    if now is not None and column in now.numbers:
        return f"a change in the stream is of before column {column}, which is in its key, was called so"
    return f"column {column}, which is in its key, is gone"


def _identity(table: CapturedTable, relation: Relation) -> str | None:
    if relation.replica_identity == "f":
        return None
    if left_out := [name for name in table.key if name not in relation.identity_columns]:
        return f"its replica identity leaves out {left_out[0]}, which is in its key"
    was = table.relation
    if was.replica_identity == relation.replica_identity == "d" and set(was.identity_columns) == set(table.key) != set(
        relation.identity_columns
    ):
        return f"its primary key is ({', '.join(relation.identity_columns)}) now, not ({', '.join(table.key)})"
    return None


def _same_type(was: int, now: int) -> bool:
    """Whether a value that both types have has one text in both.

    Whether the change gave rows other values is seen elsewhere (producers.publish.silent_changes), and so is what a
    modifier does. A numeric's is in the Avro type, so the registry judges it too.
    """
    if was == now or any({was, now} <= group for group in (_WHOLE, _BINARY_FRACTION, _TEXT)):
        return True
    return was in _WHOLE and now == 701 and was != 20


def _retyped(table: CapturedTable, now: TableNow) -> str | None:
    """Return which column has a type now that the topic cannot follow, since no event may tell for long."""
    for column in table.relation.columns:
        was, type_oid = column.type_oid, now.types.get(column.name, column.type_oid)
        if not _same_type(was, type_oid):
            return _other_type(column.name)
        if column.name in table.key and column_type(was).key != column_type(type_oid).key:
            return f"key column {column.name} changed its type"
    return None


def _other_type(name: str) -> str:
    return f"column {name} changed its type, and with it the values that stand in the topic"


def _renamed(names: Sequence[str], followed: Followed, now: TableNow | None) -> str | None:
    """Return which followed column has another name, None when those that are not in `names` are gone.

    The catalog may be further on than `names`, and lack what has been added to them; or what is followed was read from
    the catalog, and the stream is behind it. `names` are in the order of their numbers, but in a partition.
    """
    for old in sorted(followed.keys() - set(names)):
        number = followed[old].number
        called = None if now is None else next((name for name, each in now.numbers.items() if each == number), None)
        if called not in (None, old):
            return f"column {old} is called {called} now"
        for new in sorted(set(names) - followed.keys()):
            if now is not None and new in now.numbers:
                continue
            if now is None or not number:
                return f"column {old} is called {new} now"
            if called == old and _may_be(number, names, new, now):
                return f"a change in the stream has column {new} in the place of {old}: one may be the other, renamed"
    return None


def _may_be(number: int, names: Sequence[str], name: str, now: TableNow) -> bool:
    """Whether a column that the catalog lacks may have the number, by those beside it."""
    place = names.index(name)
    before = [now.numbers[each] for each in names[:place] if each in now.numbers]
    after = [now.numbers[each] for each in names[place:] if each in now.numbers]
    return max(before, default=0) < number and all(number < each for each in after)
