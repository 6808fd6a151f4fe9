"""Where everything stands: ledger, Kafka's offsets, slot, positions and status have to agree at every instant."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.path.histories import COPIES, TOMBSTONE, TRUNCATE, Evidence, Fault
from tests.chaos.witness import Move


def find_faults(evidence: Evidence) -> Iterator[Fault]:
    """Yield moves that are no step forward, places that disagree, and what was ahead of what it has to follow."""
    yield from moves(evidence)
    yield from ends(evidence)
    for lead in evidence.leads:
        if lead.follower > lead.leader:
            yield Fault(f"{lead.what} too early", f"at {lead.follower}, and it follows what was at {lead.leader}")
    yield from said(evidence)


def moves(evidence: Evidence) -> Iterator[Fault]:
    """Yield moves of a ledger that do not begin where the one before ended, or go back, or are of another run."""
    for migration, places in evidence.passes.items():
        for partition, made in places.items():
            before: Move | None = None
            for move in made:
                expected = None if before is None else before.new
                forward = move.new == 0 if move.old is None else move.new > move.old
                if move.old != expected or not forward or move.run != 1:
                    what = f"{migration}, partition {partition}: {move.old} to {move.new} after {expected}"
                    yield Fault("a move of the ledger that is no step forward", what)
                before = move


def ends(evidence: Evidence) -> Iterator[Fault]:
    """Yield partitions whose ledger or offset in Kafka is not the topic's end after all had settled."""
    for migration, ledger in evidence.ledger.items():
        committed = evidence.committed.get(migration, {})
        for partition, end in evidence.ends.items():
            stands, offset = ledger.get(partition, 0), committed.get(partition, 0)
            if stands < end:
                yield Fault("the ledger is not at the end", f"{migration}, partition {partition}: {stands} of {end}")
            if offset != stands:
                what = f"{migration}, partition {partition}: {offset} in Kafka, {stands} in the ledger"
                yield Fault("Kafka's offset is not the ledger's", what)


def said(evidence: Evidence) -> Iterator[Fault]:
    """Yield what status called done while an event of chaos_copies that it counted was not."""
    first: dict[tuple[int, tuple[str, int, int]], float] = {}
    for effect in evidence.effects:
        first.setdefault((effect.key, effect.identity), effect.at)
    finished = [said for said in evidence.said if said.migration == COPIES]
    for event in evidence.events:
        if event.key is None or event.op in (TOMBSTONE, TRUNCATE):
            continue
        done = first.get((event.key, event.identity))
        early = next((each for each in finished if each.ends.get(event.partition, 0) > event.offset), None)
        if early is not None and (done is None or done > early.at):
            what = f"row {event.key} at {event.partition}@{event.offset} was left"
            yield Fault("status said that nothing is left", what, event.key)
