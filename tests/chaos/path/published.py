"""Checks from the application's commit to the topic: each change once, at its position, in order for each key.

What cannot be known is not judged: the database decides about a transaction in doubt, and during the first snapshot, a
change may be part of a snapshot row instead of an event of its own.
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
    """Yield the faults of the topic, and of the database that it comes from."""
    yield from kept_transactions(evidence)
    yield from positions(evidence)
    yield from tombstones(evidence)
    yield from truncates(evidence)
    for key in sorted(evidence.writes.keys() | evidence.records.keys()):
        yield from _Row(evidence, key).faults()
    yield from reads(evidence)


def kept_transactions(evidence: Evidence) -> Iterator[Fault]:
    """Yield what the database itself lost or made up: then nothing that follows can be judged."""
    for name, outcome in evidence.transactions.items():
        if outcome is Outcome.ACKNOWLEDGED and name not in evidence.found:
            yield Fault("acknowledged but not in the database", f"transaction {name}")
        if outcome is Outcome.ROLLED_BACK and name in evidence.found:
            yield Fault("rolled back but in the database", f"transaction {name}")
    for name in sorted(evidence.found - evidence.transactions.keys()):
        yield Fault("in the database but never written", f"transaction {name}")


def positions(evidence: Evidence) -> Iterator[Fault]:
    """Yield events that are not at their transaction's commit position, or are after the change of owner."""
    place: dict[int | None, int] = {}
    for event in evidence.events:
        if event.key is not None and place.setdefault(event.key, event.partition) != event.partition:
            yield Fault("one row in two partitions", f"{_described(event)}, and in {place[event.key]}", event.key)
        if event.xid is None or event.op in (READ, TOMBSTONE):
            continue
        if event.xid not in evidence.commits:
            yield Fault("published but never committed", _described(event), event.key)
        elif evidence.commits[event.xid] != event.lsn:
            what = f"{_described(event)}: its transaction committed at {format_lsn(evidence.commits[event.xid])}"
            yield Fault("published at another position", what, event.key)
        if evidence.given_away is not None and event.lsn > evidence.given_away:
            yield Fault(
                "published after the handover",
                f"{_described(event)}, after {format_lsn(evidence.given_away)}",
                event.key,
            )


def tombstones(evidence: Evidence) -> Iterator[Fault]:
    """Yield deletes that are not followed by their tombstone, and tombstones that follow no delete."""
    before: dict[int, Event] = {}
    for event in evidence.events:
        last = before.get(event.partition)
        if event.op == TOMBSTONE and (last is None or last.op != DELETE or last.key != event.key):
            yield Fault("a tombstone without its delete", _described(event), event.key)
        if last is not None and last.op == DELETE and (event.op != TOMBSTONE or last.key != event.key):
            yield Fault("a delete without its tombstone", _described(last), last.key)
        before[event.partition] = event
    for last in before.values():
        if last.op == DELETE:
            yield Fault("a delete without its tombstone", _described(last), last.key)


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
            yield Fault("truncate lost or doubled", f"partition {partition} has {len(found)} of {len(due)}")


def reads(evidence: Evidence) -> Iterator[Fault]:
    """Yield rows that were read more often than requested: that would be a silent repair."""
    again: Counter[int] = Counter()
    first: Counter[int] = Counter()
    for event in evidence.events:
        if event.op == READ and event.key is not None:
            (first if event.lsn < evidence.copied else again)[event.key] += 1
    # A truncate during a re-snapshot restarts it.
    truncated = sum(write.op == TRUNCATE for write in evidence.log) if evidence.rereads else 0
    for key in sorted(first.keys() | again.keys()):
        if first[key] + again[key] > 1 + evidence.rereads + truncated:
            what = f"row {key} was read {first[key]} and {again[key]} times, requested {evidence.rereads} times"
            yield Fault("re-snapshotted without a request", what, key)


@dataclass
class _Row:
    """Compares the events of one key with the writes of its row, in order."""

    evidence: Evidence
    key: int

    def faults(self) -> Iterator[Fault]:
        writes = self.evidence.writes.get(self.key, [])
        events = self.evidence.records.get(self.key, [])
        states = [None, *(write.value for write in writes)]
        at = 0
        streamed = 0
        begun = False
        last: Event | None = None
        for event in events:
            if last is not None and not _follows(last, event):
                yield Fault("position went back", f"{_described(event)} after {_described(last)}", self.key)
            last = event
            if event.op == READ:
                to = next((i for i in range(at, len(states)) if states[i] == event.value), None)
                if to is None:
                    yield self._unknown(event, writes)
                    continue
                covered = [write for write in writes[at:to] if not self._may_be_covered(write, event, begun)]
            else:
                # A truncate ends a copy: what follows it is published, even if a chunk's snapshot saw it already.
                first = streamed if event.op == TRUNCATE else at
                to = next((i for i in range(first, len(writes)) if _same(writes[i], event)), None)
                if to is None:
                    yield self._unknown(event, writes)
                    continue
                excused = not begun and states[to] is None
                covered = [write for write in writes[at:to] if not (excused and self._is_nothing(write))]
                to += 1
                streamed = to
            if covered:
                yield self._missing(covered)
            begun, at = True, to
        left = [write for write in writes[at:] if self.evidence.commit_of(write.xid) <= self.evidence.settled]
        if not begun and left and left[-1].value is None:
            left = [write for write in left if not self._in_first_copy(write)]
        # A truncate alone does not change a row that does not exist.
        left = [write for write in left if write.op != TRUNCATE or events]
        if left:
            yield self._missing(left)

    def _in_first_copy(self, write: Write) -> bool:
        return self.evidence.commit_of(write.xid) < self.evidence.copied

    def _is_nothing(self, write: Write) -> bool:
        """Whether a write before the first event of its row needs none: it is in the snapshot, or empties the table."""
        return write.op == TRUNCATE or self._in_first_copy(write)

    def _may_be_covered(self, write: Write, event: Event, begun: bool) -> bool:
        """Whether a snapshot row may include a write, which then has no event of its own."""
        if not begun and self._is_nothing(write):
            return True
        # The stream had not passed the write when the row was read.
        return self.evidence.commit_of(write.xid) >= event.lsn

    def _missing(self, writes: Sequence[Write]) -> Fault:
        first = writes[0]
        where = format_lsn(self.evidence.commit_of(first.xid))
        what = f"row {self.key}: {len(writes)} changes, first {first.op} of transaction {first.xid} at {where}"
        return Fault("committed but not published", what, self.key)

    def _unknown(self, event: Event, writes: Sequence[Write]) -> Fault:
        twice = any(_same(write, event) for write in writes) if event.op != READ else False
        kind = "published twice or out of order" if twice else "published but never in the database"
        return Fault(kind, _described(event), self.key)


def _same(write: Write, event: Event) -> bool:
    return (write.op, write.value, write.xid) == (event.op, event.value, event.xid)


def _follows(last: Event, event: Event) -> bool:
    before, now = (last.lsn, last.ordinal), (event.lsn, event.ordinal)
    # A snapshot row is just after the stream's position at that moment.
    return now >= before if READ in (last.op, event.op) else now > before


def _described(event: Event) -> str:
    row = "the table" if event.key is None else f"row {event.key}"
    place = f"{event.partition}@{event.offset}"
    return f"{event.op} of {row} at {place}, {format_lsn(Lsn(event.lsn))}+{event.ordinal} of {event.xid}"
