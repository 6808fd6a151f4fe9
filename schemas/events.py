"""Row changes, and the tables that they come from, as used in all of headrace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from schemas.positions import Position


class Op(StrEnum):
    """The operation on a row; the letters are Debezium's."""

    READ = "r"
    """Read by a snapshot; or updated, without its old row, in a table of `upsert_tables`."""
    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    TRUNCATE = "t"


class Unchanged(Enum):
    """The type of `UNCHANGED`: neither null nor a string."""

    UNCHANGED = "UNCHANGED"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED
"""The value of a column that the stream omitted: TOASTed and unchanged, or not part of a delete's key."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as described in the stream.

    `type_oid` and `type_modifier` are pg_attribute's `atttypid` and `atttypmod` (-1: none).
    """

    name: str
    type_oid: int
    type_modifier: int = -1


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's columns as the stream last described them, in the order of its tuples.

    `replica_identity` is pg_class.relreplident: `d` primary key, `n` nothing, `f` every column, `i` an index;
    `identity_columns` are the columns that an old tuple contains under it.
    """

    oid: int
    schema: str
    table: str
    replica_identity: str
    columns: tuple[Column, ...]
    identity_columns: tuple[str, ...] = ()

    @property
    def qualified_name(self) -> str:
        """`schema.table`, as settings name it."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a table's events, as each of them names it.

    `name` is the source's in the settings, `database` the server's own name of the database, and `connector` what
    Debezium calls the kind of source.
    """

    name: str
    database: str
    connector: str = "postgresql"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of an event and its position in that source's order.

    `database` is the source's name in the settings: `source.name` of the record.

    `ts_ms` is the time of the commit, or when the chunk was read, in milliseconds since 1970. `xid` is the
    32-bit transaction id, None for a row read by a snapshot.
    """

    database: str
    gitlab_schema: str
    schema: str
    table: str
    position: Position
    xid: int | None
    ts_ms: int
    snapshot: bool


Row = Mapping[str, object]
"""Column name → value; UNCHANGED if the stream omitted it."""


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One row's change.

    `after` is the new row (None for a delete and a truncate), `before` the old one, as far as the replica identity
    includes it (None if not at all; UNCHANGED for missing columns). `ts_ms` is the time of capture in milliseconds
    since 1970.
    """

    op: Op
    source: Source
    ts_ms: int
    before: Row | None
    after: Row | None
