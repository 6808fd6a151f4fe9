"""Checks from the topic to the effect: each effect exactly once, by the owner, in the ledger's transaction.

Both migrations are judged by what happened between two writes of a row, not by the end state: a row that a later event
repaired was broken all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.path.histories import (
    COPIES,
    RESET,
    RESETS,
    TOMBSTONE,
    TRUNCATE,
    WANTED,
    Effect,
    Event,
    Evidence,
    Fault,
    Pause,
    Write,
)

_NO_EFFECT = (TOMBSTONE, TRUNCATE)


def find_faults(evidence: Evidence) -> Iterator[Fault]:
    """Yield the faults in the effects of both migrations."""
    yield from copies(evidence)
    yield from resets(evidence)


def copies(evidence: Evidence) -> Iterator[Fault]:
    """Yield events that chaos_copies did not apply exactly once, in order, in the transaction that passed them."""
    done: dict[int, list[Effect]] = defaultdict(list)
    for effect in evidence.effects:
        done[effect.key].append(effect)
        yield from _rightful(evidence, COPIES, effect, effect.key)
        if not effect.visible:
            what = f"row {effect.key}, {_event_of(effect)}, by transaction {effect.xid}"
            yield Fault("applied before it was visible", what, effect.key)
    wanted: dict[int, list[Event]] = defaultdict(list)
    for event in evidence.events:
        if event.key is not None and event.op not in _NO_EFFECT:
            wanted[event.key].append(event)
    for key in sorted(wanted.keys() | done.keys()):
        yield from _row_of_copies(evidence, key, wanted[key], done[key])


def _row_of_copies(evidence: Evidence, key: int, events: Sequence[Event], effects: Sequence[Effect]) -> Iterator[Fault]:
    waiting: dict[tuple[str, int, int], list[Event]] = defaultdict(list)
    for event in events:
        waiting[event.identity].append(event)
    known = {event.identity for event in events}
    reached = -1
    for effect in effects:
        if not waiting[effect.identity]:
            kind = "applied twice" if effect.identity in known else "applied but not in the topic"
            yield Fault(kind, f"row {key}, {_event_of(effect)}, by transaction {effect.xid}", key)
            continue
        event = waiting[effect.identity].pop(0)
        passed = evidence.passed(COPIES, event)
        if passed != effect.xid:
            what = f"row {key}, {_at(event)}: applied by {effect.xid}, passed by {passed}"
            yield Fault("not in the transaction that moved the ledger", what, key)
        if event.offset < reached:
            yield Fault("applied out of order", f"row {key}, {_at(event)} after {reached}", key)
        reached = max(reached, event.offset)
    for left in waiting.values():
        for event in left:
            if (passed := evidence.passed(COPIES, event)) is not None:
                yield Fault("passed but not applied", f"row {key}, {_at(event)}, by transaction {passed}", key)
            elif event.lsn <= evidence.settled:
                yield Fault("never applied", f"row {key}, {_at(event)}", key)


def resets(evidence: Evidence) -> Iterator[Fault]:
    """Yield rows that skip_resets left unchanged, or changed without a request.

    A wanted row stays wanted until its event is passed: by then the migration has changed it, in that transaction or in
    the one that passed an earlier event of the row, or the application has overwritten it.
    """
    passing: dict[int, set[int]] = defaultdict(set)
    """Key → the transactions that passed an event that wants the row changed."""
    own: dict[tuple[int | None, int | None, str | None], Event] = {}
    for event in evidence.events:
        if event.value is not None and event.value.endswith(WANTED) and event.key is not None:
            own[event.key, event.xid, event.value] = event
            if (xid := evidence.passed(RESETS, event)) is not None:
                passing[event.key].add(xid)
    for key, writes in evidence.writes.items():
        for write, after in zip(writes, [*writes[1:], None], strict=True):
            if write.by_headrace:
                yield from _rightful(evidence, RESETS, write, key)
                yield from _reset(write, passing[key], key)
            if write.value is None or not write.value.endswith(WANTED):
                continue
            event_of_write = own.get((key, write.xid, write.value))
            if after is None or not after.by_headrace:
                yield from _left_alone(evidence, write, after, event_of_write, key)


def _reset(write: Write, passing: set[int], key: int) -> Iterator[Fault]:
    was, now = write.old or "", write.value or ""
    if not was.endswith(WANTED) or not now.endswith(RESET) or was.split("/")[0] != now.split("/")[0]:
        yield Fault("changed wrongly", f"row {key} by transaction {write.xid}", key)
    elif write.xid not in passing:
        what = f"row {key} by transaction {write.xid}, which passed no event that wants it"
        yield Fault("changed without an event", what, key)


def _left_alone(
    evidence: Evidence, write: Write, after: Write | None, event: Event | None, key: int
) -> Iterator[Fault]:
    """Yield a fault if the event of a wanted row was passed while the row was still wanted."""
    if event is None:  # it is in a snapshot row, or unpublished, which another check reports
        if after is None and evidence.commit_of(write.xid) <= evidence.settled:
            yield Fault("wanted but never changed", f"row {key} since transaction {write.xid}", key)
        return
    passed = evidence.passed(RESETS, event)
    if passed is None:
        if after is None and event.lsn <= evidence.settled:
            yield Fault("wanted but never changed", f"row {key}, {_at(event)}", key)
    elif after is None or evidence.commit_of(passed) < evidence.commit_of(after.xid):
        until = "the end" if after is None else f"transaction {after.xid}, which came later"
        what = f"row {key}, {_at(event)}, passed by {passed}: the row stayed wanted until {until}"
        yield Fault("passed while the row was wanted", what, key)


def _rightful(evidence: Evidence, migration: str, effect: Effect | Write, key: int) -> Iterator[Fault]:
    if effect.name != evidence.name or effect.owner != evidence.name:
        what = f"{migration} wrote row {key}: the database is {effect.name}, the owner {effect.owner}"
        yield Fault("written without ownership", what, key)
    if any(_breaks(effect, pause) for pause in evidence.pauses if pause.migration == migration):
        yield Fault("written while it was paused", f"{migration} wrote row {key} by transaction {effect.xid}", key)


def _breaks(effect: Effect | Write, pause: Pause) -> bool:
    """Whether a write of a paused migration should not exist: only transactions begun before may end during a pause."""
    if not pause.since <= effect.at < pause.until:
        return False
    return effect.began >= pause.since or effect.at >= pause.quiet


def _event_of(effect: Effect) -> str:
    return f"{effect.op} {effect.lsn:X}+{effect.ordinal}"


def _at(event: Event) -> str:
    return f"{event.op} at {event.partition}@{event.offset}"
