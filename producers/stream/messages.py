"""pgoutput's messages, one class each, named as in PostgreSQL's "Logical Replication Message Formats".

They are named tuples since millions are created, at half the cost of a frozen dataclass. Distinguish them by type, not
by `==`, since tuples compare by content alone.

LSNs are as on the wire. Times (`…_ms`) are milliseconds since 1970. An `xid` on a change is that of its
(sub)transaction inside a stream block, None elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from schemas.events import Relation, Unchanged
from schemas.positions import Lsn


class Binary(bytes):
    """A value in its type's binary send format; only in streams with the option `binary`."""

    __slots__ = ()


Values: TypeAlias = Sequence[bytes | Unchanged | None]
"""One row in the order of `Relation.columns`: text as bytes, None for null, UNCHANGED if omitted."""


class Begin(NamedTuple):
    """A transaction starts; `final_lsn` is the LSN of its commit record, `Commit.commit_lsn`."""

    final_lsn: Lsn
    commit_ms: int
    xid: int


class Commit(NamedTuple):
    """A transaction ends; `end_lsn`, the byte after its commit record, may be confirmed once it is safe."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_ms: int


class LogicalMessage(NamedTuple):
    """From pg_logical_emit_message; a non-transactional one is outside any Begin and Commit."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes
    xid: int | None


class Origin(NamedTuple):
    """The transaction was itself replicated from the node `name`, where it committed at `lsn`."""

    lsn: Lsn
    name: str


class RelationMessage(NamedTuple):
    """The description of a table for the changes that follow; sent before its first change and after DDL."""

    relation: Relation
    xid: int | None


class TypeMessage(NamedTuple):
    """The name of a type that is not built in."""

    oid: int
    schema: str
    name: str
    xid: int | None


class Insert(NamedTuple):
    """A new row."""

    relation: Relation
    after: Values
    xid: int | None


class Update(NamedTuple):
    """A changed row.

    `before` is None unless the identity changed or was TOASTed, or the replica identity is full. Columns outside the
    identity are UNCHANGED in it; the wire has nulls there.
    """

    relation: Relation
    before: Values | None
    after: Values
    xid: int | None


class Delete(NamedTuple):
    """A removed row; columns outside the replica identity are UNCHANGED."""

    relation: Relation
    before: Values
    xid: int | None


class ChangeDecoder(Protocol):
    """Decodes a relation's changes: producers.stream.row_changes.RowChanges."""

    @property
    def identity_mask(self) -> bytes: ...

    def decode(self, data: bytes, place: int) -> Insert | Update | Delete: ...


class Changes(NamedTuple):
    """Consecutive changes of one relation in one transaction, not decoded yet.

    `payloads` are their messages, in which the relation's oid is at byte `place`. Relations may be described otherwise
    by later messages: `decoder` has the description that applies to these.
    """

    relation: Relation
    payloads: list[bytes]
    place: int
    decoder: ChangeDecoder

    def change(self, index: int) -> Insert | Update | Delete:
        """Return one of the changes. Raises Malformed."""
        return self.decoder.decode(self.payloads[index], self.place)


class Truncate(NamedTuple):
    """These tables were truncated by one command."""

    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool
    xid: int | None


class StreamStart(NamedTuple):
    """A block of a transaction in progress starts; `first` marks its first block."""

    xid: int
    first: bool


class StreamStop(NamedTuple):
    """The block ends; commit or abort follows later."""


class StreamCommit(NamedTuple):
    """The streamed transaction `xid` committed, at this place in commit order."""

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_ms: int


class StreamAbort(NamedTuple):
    """The subtransaction `subxid` aborted; the whole transaction if it equals `xid`.

    `abort_lsn` and `abort_ms` are set only with streaming = parallel.
    """

    xid: int
    subxid: int
    abort_lsn: Lsn | None
    abort_ms: int | None


class BeginPrepare(NamedTuple):
    """A two-phase transaction starts, decoded at its PREPARE."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_ms: int
    xid: int
    gid: str


class Prepare(NamedTuple):
    """The two-phase transaction of the last BeginPrepare is prepared."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_ms: int
    xid: int
    gid: str


class StreamPrepare(NamedTuple):
    """A two-phase transaction that was streamed is prepared."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_ms: int
    xid: int
    gid: str


class CommitPrepared(NamedTuple):
    """A prepared transaction committed."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_ms: int
    xid: int
    gid: str


class RollbackPrepared(NamedTuple):
    """A prepared transaction was rolled back."""

    prepare_end_lsn: Lsn
    rollback_end_lsn: Lsn
    prepare_ms: int
    rollback_ms: int
    xid: int
    gid: str


Message: TypeAlias = (
    Begin
    | Commit
    | LogicalMessage
    | Origin
    | RelationMessage
    | TypeMessage
    | Insert
    | Update
    | Delete
    | Changes
    | Truncate
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | StreamPrepare
    | CommitPrepared
    | RollbackPrepared
)
