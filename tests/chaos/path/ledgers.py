"""Checks that ledger, Kafka's offsets, slot, positions and status agree at every instant."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.path.histories import COPIES, TOMBSTONE, TRUNCATE, Evidence, Fault
from tests.chaos.witness import Move


def find_faults(evidence: Evidence) -> Iterator[Fault]:
    """Yield ledger moves that are not forward, final offsets that disagree, and positions ahead of what they follow."""
    yield from moves(evidence)
    yield from ends(evidence)
    for lead in evidence.leads:
        if lead.follower > lead.leader:
            yield Fault(f"{lead.what} is ahead", f"at {lead.follower}, but what it follows was at {lead.leader}")
    yield from reports(evidence)


def moves(evidence: Evidence) -> Iterator[Fault]:
    """Yield ledger moves that do not start where the previous one ended, go back, or belong to another run."""
    for migration, places in evidence.passes.items():
        for partition, made in places.items():
            before: Move | None = None
            for move in made:
                expected = None if before is None else before.new
                forward = move.new == 0 if move.old is None else move.new > move.old
                if move.old != expected or not forward or move.run != 1:
                    what = f"{migration}, partition {partition}: {move.old} to {move.new}, not from {expected}"
                    yield Fault("ledger did not move forward", what)
                before = move


def ends(evidence: Evidence) -> Iterator[Fault]:
    """Yield partitions whose ledger or Kafka offset is not the topic's end after everything had settled."""
    for migration, ledger in evidence.ledger.items():
        committed = evidence.committed.get(migration, {})
        for partition, end in evidence.ends.items():
            ledger_offset, offset = ledger.get(partition, 0), committed.get(partition, 0)
            if ledger_offset < end:
                yield Fault(
                    "the ledger is not at the end", f"{migration}, partition {partition}: {ledger_offset} of {end}"
                )
            if offset != ledger_offset:
                what = f"{migration}, partition {partition}: {offset} in Kafka, {ledger_offset} in the ledger"
                yield Fault("Kafka's offset differs from the ledger", what)


def reports(evidence: Evidence) -> Iterator[Fault]:
    """Yield events of chaos_copies that were pending when status reported caught up."""
    first: dict[tuple[int, tuple[str, int, int]], float] = {}
    for effect in evidence.effects:
        first.setdefault((effect.key, effect.identity), effect.at)
    finished = [report for report in evidence.reports if report.migration == COPIES]
    for event in evidence.events:
        if event.key is None or event.op in (TOMBSTONE, TRUNCATE):
            continue
        done = first.get((event.key, event.identity))
        early = next((each for each in finished if each.ends.get(event.partition, 0) > event.offset), None)
        if early is not None and (done is None or done > early.at):
            what = f"row {event.key} at {event.partition}@{event.offset} was pending"
            yield Fault("status reported caught up too early", what, event.key)
