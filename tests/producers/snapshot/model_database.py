"""A model of the database that a producer reads: transactions, their visibility in snapshots, and the decoded WAL.

A transaction is in the WAL, and decoded, before it becomes visible; until it is visible it holds its locks. Ids and WAL
positions behave as the server's: an id is assigned at the first write, a snapshot's xmax is after the last that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from infra.postgres.control import REQUESTS
from infra.state.snapshot_requests import SnapshotRequest
from producers.stream import messages as pg
from schemas.events import UNCHANGED, Column, Relation
from schemas.positions import Lsn, Position
from schemas.xid_snapshot import Snapshot

RELATION = Relation(
    16_400, "public", "t", "d", (Column("id", 23), Column("n", 23), Column("big", 25)), identity_columns=("id",)
)
REQUESTED = Relation(
    16_500,
    *REQUESTS,
    "d",
    (Column("table", 25), Column("first_key", 1009), Column("last_key", 1009), Column("from_scratch", 16)),
    identity_columns=(),
)
FIRST_XID = (1 << 32) - 5
"""The ids' low halves wrap around early in every history."""

State = dict[int, tuple[int, int]]
"""Key → the values of n and big."""


@dataclass(frozen=True)
class Change:
    """One change; `key` is None for a truncate. `old` is the key before, None for an insert."""

    old: int | None
    key: int | None
    n: int = 0
    big: int = 0
    keeps_big: bool = False
    request: SnapshotRequest | None = None

    def apply(self, state: State) -> None:
        if self.request is not None:
            return
        if self.old is None and self.key is None:
            state.clear()
            return
        if self.old is not None:
            del state[self.old]
        if self.key is not None:
            state[self.key] = self.n, self.big

    def message(self) -> pg.Message:
        if self.request is not None:
            return pg.Insert(REQUESTED, requested(self.request), None)
        after: pg.Values = [b"%d" % (self.key or 0), b"%d" % self.n, UNCHANGED if self.keeps_big else b"%d" % self.big]
        if self.old is None:
            return (
                pg.Truncate((RELATION,), False, False, None) if self.key is None else pg.Insert(RELATION, after, None)
            )
        before: pg.Values = [b"%d" % self.old, UNCHANGED, UNCHANGED]
        if self.key is None:
            return pg.Delete(RELATION, before, None)
        return pg.Update(RELATION, None if self.old == self.key else before, after, None)


def requested(request: SnapshotRequest) -> pg.Values:
    """Return a request's row as in the stream; keys are numbers here."""
    ends = (None if key is None else f"{{{','.join(key)}}}".encode() for key in (request.first, request.last))
    return [request.table.encode(), *ends, b"t" if request.from_scratch else b"f"]


@dataclass
class Transaction:
    """A transaction that has written; `commit_lsn` is 0 until it is in the WAL."""

    xid: int
    changes: list[Change] = field(default_factory=list)
    commit_lsn: int = 0
    end_lsn: int = 0

    @property
    def truncates(self) -> bool:
        return any(change.old is None and change.key is None and change.request is None for change in self.changes)

    @property
    def locked(self) -> set[int]:
        return {key for change in self.changes for key in (change.old, change.key) if key is not None}

    def messages(self) -> Iterator[pg.Message]:
        yield pg.Begin(Lsn(self.commit_lsn), 0, self.xid & 0xFFFFFFFF)
        for change in self.changes:
            yield change.message()
        yield pg.Commit(Lsn(self.commit_lsn), Lsn(self.end_lsn), 0)


def sees(snapshot: Snapshot, transaction: Transaction) -> bool:
    """PostgreSQL's answer, by full 64-bit ids."""
    xid = transaction.xid
    return xid < snapshot.xmin or (xid < snapshot.xmax and xid not in snapshot.in_progress)


class ModelDatabase:
    """One table `t`, and the transactions on it."""

    def __init__(self) -> None:
        self.log: list[Transaction] = []
        self.running: list[Transaction] = []
        """Neither rolled back nor visible yet; those with a commit_lsn are in the WAL."""
        self.insert_lsn = 1000
        self._next_xid = FIRST_XID
        self._last_ended = FIRST_XID - 1
        self._written = 0

    # What a session does.

    def begin(self) -> Transaction:
        transaction = Transaction(self._next_xid)
        self._next_xid += 1
        self.running.append(transaction)
        return transaction

    def next_xid(self) -> int:
        """Return an id above all that are given, of a transaction that has ended at once."""
        self._next_xid += 1
        self._last_ended = self._next_xid - 1
        return self._last_ended

    def write(self, transaction: Transaction, key: int, other: int | None, *, keeps_big: bool) -> bool:
        """Insert, update or (to `other`) move a row, whichever applies; return whether no lock prevents it."""
        state = self._seen_by(transaction)
        if self._locked(transaction, key, other):
            return False
        self._written += 1
        n = self._written
        if key not in state:
            self._change(transaction, Change(None, key, n, n))
        else:
            moved = key if other is None or other in state else other
            self._change(transaction, Change(key, moved, n, state[key][1] if keeps_big else n, keeps_big))
        return True

    def delete(self, transaction: Transaction, key: int) -> bool:
        if self._locked(transaction, key, None) or key not in self._seen_by(transaction):
            return False
        self._change(transaction, Change(key, None))
        return True

    def truncate(self, transaction: Transaction) -> bool:
        """Truncate the table, which requires an exclusive lock."""
        if any(other is not transaction and other.changes for other in self.running):
            return False
        self._change(transaction, Change(None, None))
        return True

    def request(self, transaction: Transaction, request: SnapshotRequest) -> None:
        self._change(transaction, Change(None, None, request=request))

    def commit(self, transaction: Transaction) -> None:
        """Write the commit to the WAL: it is decoded from now on, though not yet visible."""
        transaction.commit_lsn = self.insert_lsn
        self.insert_lsn += 8
        transaction.end_lsn = self.insert_lsn
        self.log.append(transaction)

    def end(self, transaction: Transaction) -> None:
        """Make a commit visible, or roll back what is not committed."""
        self.running.remove(transaction)
        self._last_ended = max(self._last_ended, transaction.xid)

    def age(self) -> None:
        """Skip two billion transactions that do not touch the table."""
        self._next_xid += (1 << 31) + 5
        self._last_ended = self._next_xid - 1

    # What a producer sees.

    def snapshot(self) -> Snapshot:
        xmax = self._last_ended + 1
        listed = frozenset(each.xid for each in self.running if each.xid < xmax)
        return Snapshot(min(listed, default=xmax), xmax, listed)

    @property
    def locked_whole(self) -> bool:
        """Whether a truncate blocks readers."""
        return any(each.truncates for each in self.running)

    def state(self, includes: Callable[[Transaction], bool]) -> State:
        """Return the table after those logged transactions that are included."""
        state: State = {}
        for transaction in self.log:
            if includes(transaction):
                for change in transaction.changes:
                    change.apply(state)
        return state

    def state_at(self, position: Position, snapshot: Snapshot | None) -> State:
        """Return the table after all up to a place in the stream, and all that the snapshot sees."""
        state: State = {}
        for transaction in self.log:
            whole = snapshot is not None and sees(snapshot, transaction)
            ordinal = -1
            for change in transaction.changes:
                ordinal += 1
                if whole or (transaction.commit_lsn, ordinal) <= position:
                    change.apply(state)
        return state

    def versions(self, snapshot: Snapshot) -> dict[int, Position]:
        """Return key → the place of the last change of its row that the snapshot sees."""
        versions: dict[int, Position] = {}
        for transaction in self.log:
            if sees(snapshot, transaction):
                ordinal = -1
                for change in transaction.changes:
                    ordinal += 1
                    for key in (change.old, change.key):
                        if key is not None:
                            versions[key] = Position(Lsn(transaction.commit_lsn), ordinal)
        return versions

    def _seen_by(self, transaction: Transaction) -> State:
        state = self.state(lambda each: each not in self.running)
        for change in transaction.changes:
            change.apply(state)
        return state

    def _locked(self, transaction: Transaction, *keys: int | None) -> bool:
        others = [other for other in self.running if other is not transaction]
        return any(other.truncates or other.locked & set(keys) for other in others)

    def _change(self, transaction: Transaction, change: Change) -> None:
        transaction.changes.append(change)
        self.insert_lsn += 8
