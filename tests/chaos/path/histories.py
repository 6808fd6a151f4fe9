"""What is known of a round when it is over: the evidence that the checker judges. Data only."""

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
"""The migration that is guarded: it writes the table that it reads, by a condition on the row."""
COPIES: Final = "chaos_copies"
"""The migration that is not idempotent: it writes down every event that it applies (migrations/chaos_copies.py)."""
MIGRATIONS: Final = (RESETS, COPIES)

WANTED: Final = "/import_skipped/2"
RESET: Final = "/default/"
"""The ends of the value of a row that skip_resets is to change, and of one that it has changed."""

BEGINNING: Final = Lsn(0)
END: Final = Lsn(1 << 63)
"""Positions before and behind every other."""

TOMBSTONE: Final = "tombstone"
READ, CREATE, UPDATE, DELETE, TRUNCATE = "r", "c", "u", "d", "t"


class Outcome(Enum):
    """What an application's session knows of its transaction."""

    ACKNOWLEDGED = "acknowledged"
    ROLLED_BACK = "rolled back"
    IN_DOUBT = "in doubt"
    """The connection was lost while the commit was under way: only the database knows."""


class Write(NamedTuple):
    """A change of a row that was committed, as a trigger logged it; a changed key is two, of the same transaction.

    `value` is what the row became, None for one that is gone. `key` is None for a truncate. `at` is in seconds since
    1970. `name`, `owner` and `paused` are what the database said then of itself and of the migration that wrote.
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
    paused: bool = False

    @property
    def by_headrace(self) -> bool:
        return self.application.startswith("headrace")


class Event(NamedTuple):
    """A record of the topic. `key` is None for a truncate, `xid` for what is no change of a transaction."""

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
        """What an effect says of the event that it came from, beside its key."""
        return self.op, self.lsn, self.ordinal


class Effect(NamedTuple):
    """An event that chaos_copies applied: which, by which transaction, and what that one saw.

    `visible` says whether the event's transaction was visible to it; the others are as in Write.
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
    paused: bool = False

    @property
    def identity(self) -> tuple[str, Lsn, int]:
        return self.op, self.lsn, self.ordinal


class Lead(NamedTuple):
    """A look at two places that follow each other, the follower first: `follower` may not be ahead of `leader`."""

    what: str
    follower: int
    leader: int


class Said(NamedTuple):
    """Status said at `at` that a migration had caught up, with these ends of the topic's partitions."""

    migration: str
    ends: Mapping[int, int]
    at: float


@dataclass(frozen=True)
class Evidence:
    """All that the checker is given.

    Up to `settled`, a position in the WAL, everything has to be published and applied: nothing was broken any more, and
    all were waited for. At `given_away` the database gave its gitlab schema to another; None: it did not.
    """

    log: Sequence[Write]
    """In the order of the trigger's sequence, which is that of the commits for each row."""
    commits: Mapping[int, Lsn]
    """Transaction → the position of its commit, as a slot of the harness's own was told."""
    events: Sequence[Event]
    """In the order of their offsets, partition by partition."""
    effects: Sequence[Effect] = ()
    moves: Mapping[str, Sequence[Move]] = field(default_factory=dict)
    transactions: Mapping[str, Outcome] = field(default_factory=dict)
    """The application's own log: its name for each transaction, and what it knows of it."""
    found: Set[str] = frozenset()
    """Those of them that the database has."""
    settled: Lsn = END
    given_away: Lsn | None = None
    copied: Lsn = BEGINNING
    """The first snapshot was seen to be complete at this position of the WAL."""
    rereads: int = 0
    """How often the table was asked to be read again, or its form was changed, which may have the same effect."""
    ends: Mapping[int, int] = field(default_factory=dict)
    """Partition → its end when everything had settled."""
    ledger: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    committed: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Migration → partition → the ledger's offset, and the group's in Kafka, at the end of all."""
    leads: Sequence[Lead] = ()
    said: Sequence[Said] = ()
    name: str = "main"
    """What the database is called in the settings."""

    @cached_property
    def writes(self) -> Mapping[int, list[Write]]:
        """Key → the writes of its row, each truncate among them that came after its first."""
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
        """Key → its events, each truncate of its partition among them that came after its first; no tombstones."""
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
        """Return the transaction that moved the migration's ledger over an event; None: it is not passed."""
        offsets, xids = self._reached.get((migration, event.partition), ((), ()))
        place = bisect_right(offsets, event.offset)
        return xids[place] if place < len(offsets) else None

    def commit_of(self, xid: int) -> Lsn:
        """Return the position of a transaction's commit; one that no slot was told of came after everything else."""
        return self.commits.get(xid, END)


class Fault(NamedTuple):
    """A promise that was broken; `key` is the row's, where it is one row's."""

    kind: str
    what: str
    key: int | None = None
