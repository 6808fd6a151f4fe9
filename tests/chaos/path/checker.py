"""The history checker: decides from a round's evidence whether a promise was broken.

Pure: it talks to no server. Its checks are in three modules: `published` (the application's commit to the topic),
`applied` (the topic to the effect), `ledgers` (ledgers, offsets and the slot).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from schemas.positions import Lsn, format_lsn
from tests.chaos.path import applied, ledgers, published
from tests.chaos.path.histories import COPIES, END, RESETS, Evidence, Fault
from tests.chaos.witness import Move

_TOLD: Final = 3


def find_faults(evidence: Evidence) -> Iterator[Fault]:
    """Yield every broken promise."""
    yield from published.find_faults(evidence)
    yield from applied.find_faults(evidence)
    yield from ledgers.find_faults(evidence)


def verdict(evidence: Evidence) -> str | None:
    """Return what was broken, with the smallest history that shows it; None if nothing was."""
    faults = list(find_faults(evidence))
    if not faults:
        return None
    kinds = Counter(fault.kind for fault in faults)
    lines = [", ".join(f"{number} times: {kind}" for kind, number in kinds.most_common())]
    for kind in list(kinds)[:_TOLD]:
        fault = next(fault for fault in faults if fault.kind == kind)
        lines.append(f"{fault.kind}: {fault.what}")
        if fault.key is not None:
            lines += [f"    {line}" for line in history_of(shrunk(evidence, fault), fault.key)]
    return "\n".join(lines)


def shrunk(evidence: Evidence, fault: Fault) -> Evidence:
    """Return the smallest history of one row, from any start, in which the same kind of promise is broken."""
    small = _only(evidence, fault.key)
    if not _shows(small, fault):
        return evidence
    cuts = sorted({write.xid for write in small.log}, key=small.commit_of)
    for xid in cuts:
        shorter = _without(small, xid)
        if not _shows(shorter, fault):
            break
        small = shorter
    return small


def _shows(evidence: Evidence, fault: Fault) -> bool:
    return any((found.kind, found.key) == (fault.kind, fault.key) for found in find_faults(evidence))


def _only(evidence: Evidence, key: int | None) -> Evidence:
    return replace(
        evidence,
        log=[write for write in evidence.log if write.key in (key, None)],
        events=[event for event in evidence.events if event.key in (key, None)],
        effects=[effect for effect in evidence.effects if effect.key == key],
        transactions={},
        found=frozenset(),
        ends={},
        ledger={},
        committed={},
        leads=(),
        reports=(),
    )


def _without(evidence: Evidence, xid: int) -> Evidence:
    """Return the history without a transaction's writes, their events, and those events' effects."""
    gone = {(event.key, event.identity) for event in evidence.events if event.xid == xid}
    # A tombstone goes with its delete.
    places = {(event.partition, event.offset + 1) for event in evidence.events if event.xid == xid}
    return replace(
        evidence,
        log=[write for write in evidence.log if write.xid != xid],
        events=[
            event
            for event in evidence.events
            if event.xid != xid and not (event.op == "tombstone" and (event.partition, event.offset) in places)
        ],
        effects=[effect for effect in evidence.effects if (effect.key, effect.identity) not in gone],
    )


def history_of(evidence: Evidence, key: int) -> Iterator[str]:
    """Yield one row's history, a line per entry, in WAL order as far as it is known."""
    lines: list[tuple[Lsn, int, str]] = []
    passing: set[tuple[str, int]] = set()
    for write in evidence.writes.get(key, []):
        at = evidence.commit_of(write.xid)
        lines.append((at, 0, f"{write.op} to {write.value} by {write.application}, transaction {write.xid}"))
    for event in evidence.records.get(key, []):
        passed = {name: evidence.passed(name, event) for name in (RESETS, COPIES)}
        by = ", ".join(f"passed for {name} by {xid}" for name, xid in passed.items() if xid is not None)
        passing |= {(name, xid) for name, xid in passed.items() if xid is not None}
        place = f"event {event.op} of {event.value} at {event.partition}@{event.offset} of {event.xid}"
        lines.append((event.lsn, 1, f"{place}; {by or 'not passed'}"))
    for effect in evidence.effects:
        if effect.key == key:
            at = evidence.commit_of(effect.xid)
            lines.append((at, 2, f"effect of {effect.op} {format_lsn(effect.lsn)}+{effect.ordinal} by {effect.xid}"))
    for migration, moves in evidence.moves.items():
        for move in moves:
            if (migration, move.xid) in passing:
                lines.append((evidence.commit_of(move.xid), 3, _moved(migration, move)))
    for at, _, line in sorted(lines):
        yield f"{format_lsn(at) if at < END else 'at an unknown place':>12}  {line}"


def _moved(migration: str, move: Move) -> str:
    return f"{migration}: partition {move.partition} from {move.old} to {move.new} by transaction {move.xid}"
