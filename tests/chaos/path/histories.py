"""The evidence of a finished round, which the checker judges. Data only."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Final, NamedTuple

from schemas.positions import Lsn
from tests.chaos.witness import Move

RESETS: Final = "skip_resets"
"""The guarded migration: it writes the table that it reads, with a condition on the row."""
COPIES: Final = "chaos_copies"
"""The migration that is not idempotent: it records every event that it applies (migrations/chaos_copies.py)."""
MIGRATIONS: Final = (RESETS, COPIES)

WANTED: Final = "/import_skipped/2"
RESET: Final = "/default/"
"""Suffixes of the value of a row that skip_resets has to change, and of one that it has changed."""

BEGINNING: Final = Lsn(0)
END: Final = Lsn(1 << 63)
"""Positions before and after every other."""

TOMBSTONE: Final = "tombstone"
READ, CREATE, UPDATE, DELETE, TRUNCATE = "r", "c", "u", "d", "t"


class Outcome(Enum):
    """What an application's session knows about its transaction."""

    ACKNOWLEDGED = "acknowledged"
    ROLLED_BACK = "rolled back"
    IN_DOUBT = "in doubt"
    """The connection was lost during the commit: only the database knows."""


class Write(NamedTuple):
    """A committed change of a row, as a trigger logged it; a changed key makes two, in the same transaction.

    `value` is the row's new value, None if deleted. `key` is None for a truncate. `at` and `began`, when the row was
    written and when its transaction began, are in seconds since the epoch. `name` is the database's then, and `owner`
    that of the gitlab schema.
    """

    sequence: int
    xid: int
    op: str
    key: int | None
    old: str | None
    value: str | None
    at: float = 0.0
    application: str = "application"
    name: str | None = None
    owner: str | None = None
    began: float = 0.0

    @property
    def by_headrace(self) -> bool:
        return self.application.startswith("headrace")


class Event(NamedTuple):
    """A record of the topic. `key` is None for a truncate, `xid` for a record that is no change of a transaction."""

    partition: int
    offset: int
    op: str
    key: int | None
    value: str | None = None
    lsn: Lsn = Lsn(0)
    ordinal: int = 0
    xid: int | None = None

    @property
    def identity(self) -> tuple[str, Lsn, int]:
        """What an effect records of its event, besides the key."""
        return self.op, self.lsn, self.ordinal


class Effect(NamedTuple):
    """An event that chaos_copies applied: which, by which transaction, and what that transaction saw.

    `visible`: the event's transaction was visible to it; the other fields are as in Write.
    """

    sequence: int
    xid: int
    key: int
    op: str
    lsn: Lsn
    ordinal: int
    at: float = 0.0
    visible: bool = True
    name: str | None = None
    owner: str | None = None
    began: float = 0.0

    @property
    def identity(self) -> tuple[str, Lsn, int]:
        return self.op, self.lsn, self.ordinal


class Pause(NamedTuple):
    """A pause of a migration, in seconds since the epoch: `since` its commit is certain, `until` its resumption began.

    From `quiet` on it was reported that no transaction of the migration is in progress any more. Infinity: never.
    """

    migration: str
    since: float
    quiet: float
    until: float


class Lead(NamedTuple):
    """Two positions read together, the follower first: `follower` may not be ahead of `leader`."""

    what: str
    follower: int
    leader: int


class StatusReport(NamedTuple):
    """Status reported at `at` that a migration had caught up, with these ends of the topic's partitions."""

    migration: str
    ends: Mapping[int, int]
    at: float


@dataclass(frozen=True)
class Evidence:
    """All input of the checker.

    Up to `settled`, a WAL position, everything has to be published and applied: all faults were over, and the round
    waited for it. At `given_away` the database gave its gitlab schema to another; None: it did not.
    """

    log: Sequence[Write]
    """In the order of the trigger's sequence, which is commit order for each row."""
    commits: Mapping[int, Lsn]
    """Transaction → its commit position, as the harness's own slot received it."""
    events: Sequence[Event]
    """In offset order, partition by partition."""
    effects: Sequence[Effect] = ()
    moves: Mapping[str, Sequence[Move]] = field(default_factory=dict)
    transactions: Mapping[str, Outcome] = field(default_factory=dict)
    """The application's own log: its name for each transaction, and the outcome that it knows."""
    found: Set[str] = frozenset()
    """The transactions that the database has."""
    settled: Lsn = END
    given_away: Lsn | None = None
    copied: Lsn = BEGINNING
    """The first snapshot was seen to be complete at this WAL position."""
    rereads: int = 0
    """Number of requested re-snapshots, and of alterations of the table, which may cause one."""
    ends: Mapping[int, int] = field(default_factory=dict)
    """Partition → its end when everything had settled."""
    ledger: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    committed: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Migration → partition → the ledger's offset, and the group's in Kafka, at the end."""
    pauses: Sequence[Pause] = ()
    leads: Sequence[Lead] = ()
    reports: Sequence[StatusReport] = ()
    name: str = "main"
    """The database's name in the settings."""

    @cached_property
    def writes(self) -> Mapping[int, list[Write]]:
        """Key → the writes of its row, including each truncate after the first of them."""
        found: dict[int, list[Write]] = defaultdict(list)
        for write in self.log:
            if write.key is None:
                for known in found.values():
                    known.append(write)
            else:
                found[write.key].append(write)
        return found

    @cached_property
    def records(self) -> Mapping[int, list[Event]]:
        """Key → its events, including each truncate of its partition after the first of them; no tombstones."""
        found: dict[int, list[Event]] = defaultdict(list)
        here: dict[int, set[int]] = defaultdict(set)
        for event in self.events:
            if event.key is None:
                for key in here[event.partition]:
                    found[key].append(event)
            elif event.op != TOMBSTONE:
                found[event.key].append(event)
                here[event.partition].add(event.key)
        return found

    @cached_property
    def _reached(self) -> Mapping[tuple[str, int], tuple[list[int], list[int]]]:
        """Migration and partition → the offsets that its ledger reached first, and the transactions that did it."""
        found: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        for migration, moves in self.moves.items():
            for move in moves:
                offsets, xids = found.setdefault((migration, move.partition), ([], []))
                if not offsets or move.new > offsets[-1]:
                    offsets.append(move.new)
                    xids.append(move.xid)
        return found

    @cached_property
    def passes(self) -> Mapping[str, Mapping[int, Sequence[Move]]]:
        """Migration → partition → the moves of its ledger, in order."""
        found: dict[str, dict[int, list[Move]]] = {}
        for migration, moves in self.moves.items():
            places = found.setdefault(migration, defaultdict(list))
            for move in moves:
                places[move.partition].append(move)
        return found

    def passed(self, migration: str, event: Event) -> int | None:
        """Return the transaction that moved the migration's ledger past an event; None: it is not passed."""
        offsets, xids = self._reached.get((migration, event.partition), ((), ()))
        place = bisect_right(offsets, event.offset)
        return xids[place] if place < len(offsets) else None

    def commit_of(self, xid: int) -> Lsn:
        """Return a transaction's commit position; one that no slot received counts as after everything else."""
        return self.commits.get(xid, END)


class Fault(NamedTuple):
    """A broken promise; `key` is the row's, if it concerns one row."""

    kind: str
    what: str
    key: int | None = None
