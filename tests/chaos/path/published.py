"""From the application's commit to the topic: each change published once, at its position, and in order for each key.

What cannot be known is not judged: a transaction in doubt is what the database says that it is, and while the first
snapshot is read, a change may be in a row that is read instead of in an event of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.positions import Lsn, format_lsn
from tests.chaos.path.histories import (
    DELETE,
    READ,
    TOMBSTONE,
    TRUNCATE,
    Event,
    Evidence,
    Fault,
    Outcome,
    Write,
)


def find_faults(evidence: Evidence) -> Iterator[Fault]:
    """Yield what is wrong with the topic, and with the database that it comes from."""
    yield from kept_transactions(evidence)
    yield from positions(evidence)
    yield from tombstones(evidence)
    yield from truncates(evidence)
    for key in sorted(evidence.writes.keys() | evidence.records.keys()):
        yield from _Row(evidence, key).faults()
    yield from reads(evidence)


def kept_transactions(evidence: Evidence) -> Iterator[Fault]:
    """Yield what the database itself lost or made up: then nothing can be said of what comes after it."""
    for name, outcome in evidence.transactions.items():
        if outcome is Outcome.ACKNOWLEDGED and name not in evidence.found:
            yield Fault("acknowledged, and not in the database", f"transaction {name}")
        if outcome is Outcome.ROLLED_BACK and name in evidence.found:
            yield Fault("rolled back, and in the database", f"transaction {name}")
    for name in sorted(evidence.found - evidence.transactions.keys()):
        yield Fault("in the database, and never made", f"transaction {name}")


def positions(evidence: Evidence) -> Iterator[Fault]:
    """Yield events that are not at the position of their transaction's commit, or behind the change of owner."""
    place: dict[int | None, int] = {}
    for event in evidence.events:
        if event.key is not None and place.setdefault(event.key, event.partition) != event.partition:
            yield Fault("one row in two partitions", f"{_told(event)}, and in {place[event.key]}", event.key)
        if event.xid is None or event.op in (READ, TOMBSTONE):
            continue
        if event.xid not in evidence.commits:
            yield Fault("published, and never committed", _told(event), event.key)
        elif evidence.commits[event.xid] != event.lsn:
            what = f"{_told(event)}: its transaction committed at {format_lsn(evidence.commits[event.xid])}"
            yield Fault("published at another position", what, event.key)
        if evidence.given_away is not None and event.lsn > evidence.given_away:
            yield Fault("published by no owner", f"{_told(event)}, after {format_lsn(evidence.given_away)}", event.key)


def tombstones(evidence: Evidence) -> Iterator[Fault]:
    """Yield deletes that are not followed by their tombstone, and tombstones that follow no delete."""
    before: dict[int, Event] = {}
    for event in evidence.events:
        last = before.get(event.partition)
        if event.op == TOMBSTONE and (last is None or last.op != DELETE or last.key != event.key):
            yield Fault("a tombstone without its delete", _told(event), event.key)
        if last is not None and last.op == DELETE and (event.op != TOMBSTONE or last.key != event.key):
            yield Fault("a delete without its tombstone", _told(last), last.key)
        before[event.partition] = event
    for last in before.values():
        if last.op == DELETE:
            yield Fault("a delete without its tombstone", _told(last), last.key)


def truncates(evidence: Evidence) -> Iterator[Fault]:
    """Yield partitions that do not have each truncate once."""
    made = [write.xid for write in evidence.log if write.op == TRUNCATE]
    due = [xid for xid in made if evidence.commit_of(xid) <= evidence.settled]
    there: dict[int, list[int | None]] = {partition: [] for partition in evidence.ends}
    for event in evidence.events:
        if event.op == TRUNCATE:
            there.setdefault(event.partition, []).append(event.xid)
    for partition, found in there.items():
        if found[: len(due)] != due or found != made[: len(found)]:
            yield Fault("not each truncate once", f"partition {partition} has {len(found)} of {len(due)}")


def reads(evidence: Evidence) -> Iterator[Fault]:
    """Yield rows that were read more often than anybody asked for: what repairs silently."""
    again: Counter[int] = Counter()
    first: Counter[int] = Counter()
    for event in evidence.events:
        if event.op == READ and event.key is not None:
            (first if event.lsn < evidence.copied else again)[event.key] += 1
    # A truncate has a table that is being read again read from its beginning.
    truncated = sum(write.op == TRUNCATE for write in evidence.log) if evidence.rereads else 0
    for key in sorted(first.keys() | again.keys()):
        if first[key] + again[key] > 1 + evidence.rereads + truncated:
            what = f"row {key} was read {first[key]} and {again[key]} times, asked for {evidence.rereads} times"
            yield Fault("read without a request", what, key)


@dataclass
class _Row:
    """Walks the events of one key along the writes of its row."""

    evidence: Evidence
    key: int

    def faults(self) -> Iterator[Fault]:
        writes = self.evidence.writes.get(self.key, [])
        events = self.evidence.records.get(self.key, [])
        states = [None, *(write.value for write in writes)]
        at = 0
        begun = False
        last: Event | None = None
        for event in events:
            if last is not None and not _follows(last, event):
                yield Fault("a position that goes back", f"{_told(event)} after {_told(last)}", self.key)
            last = event
            if event.op == READ:
                to = next((i for i in range(at, len(states)) if states[i] == event.value), None)
                if to is None:
                    yield self._unknown(event, writes)
                    continue
                covered = [write for write in writes[at:to] if not self._may_be_covered(write, event, begun)]
            else:
                to = next((i for i in range(at, len(writes)) if _same(writes[i], event)), None)
                if to is None:
                    yield self._unknown(event, writes)
                    continue
                excused = not begun and states[to] is None
                covered = [write for write in writes[at:to] if not (excused and self._is_nothing(write))]
                to += 1
            if covered:
                yield self._missing(covered)
            begun, at = True, to
        left = [write for write in writes[at:] if self.evidence.commit_of(write.xid) <= self.evidence.settled]
        if not begun and left and left[-1].value is None:
            left = [write for write in left if not self._in_first_copy(write)]
        # A truncate alone is no change of a row that is not there.
        left = [write for write in left if write.op != TRUNCATE or events]
        if left:
            yield self._missing(left)

    def _in_first_copy(self, write: Write) -> bool:
        return self.evidence.commit_of(write.xid) < self.evidence.copied

    def _is_nothing(self, write: Write) -> bool:
        """Whether a write of a row that no event told of yet, and that is not there, needs no event."""
        return write.op == TRUNCATE or self._in_first_copy(write)

    def _may_be_covered(self, write: Write, event: Event, begun: bool) -> bool:
        """Whether a row that was read may stand for a write that it has, which has no event of its own then."""
        if not begun and self._in_first_copy(write):
            return True
        # The stream had not passed it when the row was read.
        return self.evidence.commit_of(write.xid) >= event.lsn

    def _missing(self, writes: Sequence[Write]) -> Fault:
        first = writes[0]
        where = format_lsn(self.evidence.commit_of(first.xid))
        what = f"row {self.key}: {len(writes)} changes, first {first.op} of transaction {first.xid} at {where}"
        return Fault("committed, and not published", what, self.key)

    def _unknown(self, event: Event, writes: Sequence[Write]) -> Fault:
        twice = any(_same(write, event) for write in writes) if event.op != READ else False
        kind = "published twice or out of order" if twice else "published, and never so in the database"
        return Fault(kind, _told(event), self.key)


def _same(write: Write, event: Event) -> bool:
    return (write.op, write.value, write.xid) == (event.op, event.value, event.xid)


def _follows(last: Event, event: Event) -> bool:
    before, now = (last.lsn, last.ordinal), (event.lsn, event.ordinal)
    # A row that is read stands just behind the stream's place at that moment.
    return now >= before if READ in (last.op, event.op) else now > before


def _told(event: Event) -> str:
    row = "the table" if event.key is None else f"row {event.key}"
    place = f"{event.partition}@{event.offset}"
    return f"{event.op} of {row} at {place}, {format_lsn(Lsn(event.lsn))}+{event.ordinal} of {event.xid}"
