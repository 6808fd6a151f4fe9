"""What a table's new columns, key or name mean for its topic: pure rules, no I/O.

A change is followed when every row that stands in the topic still says what the table says, so that only the rows
written from now on are of the new form. Every other change stops the table: `obstacle` says in one sentence why. The
table of all changes is in docs/events.md, section "Schema changes".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from producers.tables import CapturedTable
from schemas.errors import Refused
from schemas.events import Relation

_WHOLE: Final = frozenset({20, 21, 23})
_BINARY_FRACTION: Final = frozenset({700, 701})
_TEXT: Final = frozenset({25, 1043})
_NUMERIC: Final = 1700
_CLOCKS: Final = frozenset({1083, 1114, 1184, 1186, 1266})
"""Types whose modifier is a number of decimals of a second, to which the server rounds what is there."""


class TableStopped(Refused):
    """Change the table back or keep the change; then have it read anew with `headrace snapshot TABLE --anew`."""


@dataclass(frozen=True, slots=True)
class FollowedColumn:
    """A column as its values in the topic are; `number` is pg_attribute's attnum, which a rename leaves."""

    number: int
    type_oid: int
    type_modifier: int = -1


@dataclass(frozen=True, slots=True)
class TableNow:
    """A table as the catalog has it now, perhaps ahead of the stream.

    `numbers` is column name → attnum; `filled` are the columns that rows had a value of as soon as they were added, by
    a default; `unique` the sets of not-null columns of which no two rows have the same values. `generated` columns are
    not captured, and so not in `numbers`. `readable` says that this role sees all rows.
    """

    name: str
    numbers: Mapping[str, int]
    filled: frozenset[str]
    unique: frozenset[frozenset[str]]
    published: bool
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
            column.type_modifier,
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
        return f"column {gone[0]}, which is in its key, is gone"
    if (reason := _identity(table, relation)) is not None:
        return reason
    for column in relation.columns:
        was = followed.get(column.name)
        if was is not None and not _same_values(was, column.type_oid, column.type_modifier):
            return f"column {column.name} changed its type, and with it the values that stand in the topic"
    if (renamed := _renamed(names, followed, now)) is not None:
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
    return None


def filled_columns(relation: Relation, followed: Followed, now: TableNow | None) -> list[str]:
    """Return the added columns of which the rows in the topic lack a value that the table's rows have."""
    if not followed or now is None:
        return []
    return [column.name for column in relation.columns if column.name not in followed and column.name in now.filled]


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


def _same_values(was: FollowedColumn, type_oid: int, modifier: int) -> bool:
    """Whether values have the same text before and after the change, as far as a type alone can tell."""
    if was.type_oid != type_oid:
        return any({was.type_oid, type_oid} <= group for group in (_WHOLE, _BINARY_FRACTION, _TEXT)) or (
            was.type_oid in _WHOLE and type_oid == 701 and was.type_oid != 20
        )
    if was.type_modifier == modifier or type_oid in _TEXT or type_oid == _NUMERIC:
        # A numeric's precision and scale are in the Avro type, so the registry judges them.
        return True
    return type_oid in _CLOCKS and (modifier == -1 or -1 < was.type_modifier <= modifier)


def _renamed(names: set[str], followed: Followed, now: TableNow | None) -> str | None:
    added = sorted(names - followed.keys())
    for old in sorted(followed.keys() - names):
        for new in added:
            number = None if now is None else now.numbers.get(new)
            # Where the catalog is further on and cannot tell, a column gone and another come may be a rename.
            if number == followed[old].number or number is None:
                return f"column {old} is called {new} now"
    return None
