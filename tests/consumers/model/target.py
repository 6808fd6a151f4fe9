"""A model of the target database: transactions, their visibility in snapshots, WAL, and failovers.

A transaction is in the WAL, and decoded, before it is visible; until it is visible it keeps its locks. What a standby
has replayed survives a failover and is then visible; everything else is lost, and its ids are assigned again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.xid_snapshot import Hidden, Snapshot

FIRST_XID: Final = (1 << 32) - 12
"""The low halves wrap around during most histories."""

Tables = dict[str, dict[Any, Any]]


@dataclass(eq=False)
class Transaction:
    """A transaction's writes: table, key and value, where None deletes; and what the checks need."""

    xid: int
    generation: int
    writes: list[tuple[str, Hashable, Any]] = field(default_factory=list)
    locks: set[tuple[str, Hashable]] = field(default_factory=set)
    shares: bool = False
    """Whether it holds the fence's shared locks."""
    synchronous: bool = False
    fenced: tuple[str, int] | None = None
    """The database and run passed to the fence."""
    run: int = 0
    """The run of its events, which for a dead letter may be an earlier one."""
    applied: list[int] = field(default_factory=list)
    """The numbers of the events that it applied."""
    blind: list[int] = field(default_factory=list)
    """Those of them whose transactions it did not see."""
    moves: list[tuple[Any, int, int]] = field(default_factory=list)
    """Partition, expected offset, next offset."""
    dead_letters: list[tuple[Any, int]] = field(default_factory=list)

    def write(self, table: str, key: Hashable, value: Any) -> None:
        self.writes.append((table, key, value))
        self.locks.add((table, key))


class ModelServer:
    """A database server, with a standby that has replayed the first `replicated` transactions of its WAL."""

    def __init__(self, name: str, wal: list[Transaction] | None = None) -> None:
        self.generation = 0
        self.wal = wal or []
        self.replicated = len(self.wal)
        self._restore()
        if wal is None:
            first = self.begin()
            for key, value in (("name", name), ("owner", name), ("run", 1), ("paused", False)):
                first.write("control", key, value)
            self.commit(first)
            self.replicated = 1

    def _restore(self) -> None:
        """Start from the WAL, as a promoted standby does."""
        self.state: Tables = {table: {} for table in ("control", "rows", "ledger", "letters", "applied")}
        self.running: list[Transaction] = []
        self.visible: set[Transaction] = set()
        for transaction in self.wal:
            self._show(transaction)
        self._next_xid = max((each.xid for each in self.wal), default=FIRST_XID - 1) + 1
        self._last_ended = self._next_xid - 1

    def _show(self, transaction: Transaction) -> None:
        self.visible.add(transaction)
        for table, key, value in transaction.writes:
            if value is None:
                self.state[table].pop(key, None)
            else:
                self.state[table][key] = value

    def begin(self) -> Transaction:
        transaction = Transaction(self._next_xid, self.generation)
        self._next_xid += 1
        self.running.append(transaction)
        return transaction

    def log(self, transaction: Transaction) -> None:
        """Write the commit into the WAL: from now on it is decoded, though not yet visible."""
        self.wal.append(transaction)

    def end(self, transaction: Transaction) -> None:
        """Make a commit visible, or roll back an uncommitted one; does nothing for those lost in a failover."""
        if transaction in self.running:
            self.running.remove(transaction)
            self._last_ended = max(self._last_ended, transaction.xid)
            if transaction in self.wal:
                self._show(transaction)

    def commit(self, transaction: Transaction) -> None:
        self.log(transaction)
        self.end(transaction)

    def undecided(self, transaction: Transaction) -> bool:
        """Whether it is in the WAL and not visible."""
        return transaction in self.running and transaction in self.wal

    def locked(self, transaction: Transaction, table: str, key: Hashable) -> bool:
        """Whether another running transaction has written it."""
        return any((table, key) in each.locks for each in self.running if each is not transaction)

    @property
    def shared(self) -> bool:
        """Whether a transaction blocks an exclusive lock on the fence."""
        return any(each.shares for each in self.running)

    def hidden(self, transaction: Transaction) -> Hidden:
        """Return the result of the real rule for a snapshot taken now: see fence.hold."""
        xmax = self._last_ended + 1
        listed = frozenset(each.xid for each in self.running if each.xid < xmax and each is not transaction)
        return Hidden(Snapshot(min(listed, default=xmax), xmax, listed), self._next_xid)

    def value(self, transaction: Transaction, table: str, key: Hashable) -> Any:
        """Return what the transaction sees: its own write, else what is visible."""
        for written, where, value in reversed(transaction.writes):
            if (written, where) == (table, key):
                return value
        return self.state[table].get(key)

    def fail_over(self) -> None:
        """Fail over to the standby, with what it has replayed; every connection is lost."""
        self.wal = self.wal[: self.replicated]
        self.generation += 1
        self._restore()
