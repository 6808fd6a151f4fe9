"""Which gitlab schemas a source publishes: those its database owns, up to the change of owner in its own stream.

The old owner's producer stops at that change and says so in the positions topic; the new owner's, which reads a
physical copy of the same log, goes on behind it. So a table's topic has one writer at a time, and no gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from infra.control import Owner
from infra.positions import HandoverState, SnapshotState, SourceState, StreamState
from producers import slots, startup
from producers.feed import TableFeed
from producers.startup import SilentGap
from producers.tables import CapturedTable
from schemas.errors import OwnershipMoved, Unavailable
from schemas.events import UNCHANGED, Relation, Unchanged
from schemas.gitlab_schemas import GITLAB_SHARED
from schemas.positions import format_lsn

_COLUMNS: Final = ("gitlab_schema", "owner", "epoch")


class HandoverAwaited(Unavailable):
    """Let the old owner's producer run until it has published all; if it never will, see docs/switchover.md."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a source publishes of its tables when it starts.

    The tables of the gitlab schemas in `away` are left alone; `given` is how far they were copied. `inherited` is how
    far those are that others published before, behind whose `handover` the stream begins.
    """

    away: frozenset[str] = frozenset()
    given: Mapping[str, SnapshotState] = field(default_factory=dict)
    inherited: Mapping[str, SnapshotState] = field(default_factory=dict)
    handover: HandoverState | None = None

    def here(self, tables: Iterable[CapturedTable]) -> tuple[CapturedTable, ...]:
        """Return those of `tables` that the source publishes."""
        return tuple(table for table in tables if table.gitlab_schema not in self.away)


def standing(
    source: str,
    tables: Sequence[CapturedTable],
    sources: Mapping[str, SourceState],
    owners: Mapping[str, Owner],
) -> Standing:
    """Return where `source` stands with its tables' gitlab schemas, by all sources' records and its own database.

    Its own record goes before the database's row, which is that of now: a producer that is behind still has to
    publish what was written before the change of owner. Raises HandoverAwaited while another source has not yet
    published all of a gitlab schema that this one's database was given, and OwnershipMoved when no table is left.
    """
    state = sources.get(source, SourceState())
    away: set[str] = set()
    for_good: set[str] = set()
    given: dict[str, SnapshotState] = {}
    inherited: dict[str, SnapshotState] = {}
    taken: list[HandoverState] = []
    for gitlab_schema in sorted({table.gitlab_schema for table in tables} - {GITLAB_SHARED}):
        of_schema = [table for table in tables if table.gitlab_schema == gitlab_schema]
        owner = owners.get(gitlab_schema)
        if record := state.handovers.get(gitlab_schema):
            away.add(gitlab_schema)
            given |= {each.table: each for each in record.snapshots}
            # With another epoch there are changes of owner in the stream that were not read yet.
            if owner is not None and owner.epoch == record.epoch:
                for_good.add(gitlab_schema)
        elif owner is not None and owner.name != source and not any(t.name in state.snapshots for t in of_schema):
            away.add(gitlab_schema)  # never ours to publish, whatever the settings capture
            for_good.add(gitlab_schema)
        elif state.stream is None and owner is not None and owner.epoch > 1:
            handover = _handover_to(source, gitlab_schema, owner.epoch, of_schema, sources)
            if handover is not None:
                taken.append(handover)
                inherited |= {each.table: each.model_copy(update={"source": source}) for each in handover.snapshots}
    if tables and all(table.gitlab_schema in for_good for table in tables):
        raise _all_given(source)
    # Nothing is written between a schema's change of owner and the opening of the new one, so the last one counts.
    return Standing(frozenset(away), given, inherited, max(taken, key=lambda each: each.confirmed_lsn, default=None))


def owned(table: CapturedTable, source: str, owners: Mapping[str, Owner]) -> bool:
    """Whether the database's own rows leave the table to `source`; what nobody claimed is no other's."""
    owner = owners.get(table.gitlab_schema)
    return table.gitlab_schema == GITLAB_SHARED or owner is None or owner.name == source


def require_any_here(source: str, feeds: Sequence[TableFeed]) -> None:
    """Raise OwnershipMoved when every table has another owner."""
    if all(feed.away for feed in feeds):
        raise _all_given(source)


def _all_given(source: str) -> OwnershipMoved:
    return OwnershipMoved(
        f"database {source} has given every captured table to another database",
        remedy="drop its slot once the switchover is complete, or take the switchover back and start again",
    )


def _handover_to(
    source: str,
    gitlab_schema: str,
    epoch: int,
    tables: Iterable[CapturedTable],
    sources: Mapping[str, SourceState],
) -> HandoverState | None:
    """Return the record that makes `source` the next publisher of `gitlab_schema`; None: nobody published it."""
    topics = {table.topic for table in tables}
    for name, other in sources.items():
        if name == source:
            continue
        given = other.handovers.get(gitlab_schema)
        if given is not None and given.owner == source and given.epoch == epoch:
            return given
        if given is not None or any(each.topic in topics for each in other.snapshots.values()):
            raise HandoverAwaited(
                f"{gitlab_schema} was given to {source}, and the producer of {name} has not yet published all before"
            )
    return None


def first_state(
    source: str, instance: str, name: str, slot: slots.SlotState | None, system: str, handover: HandoverState
) -> StreamState:
    """Return the state of a stream that begins behind `handover`.

    A slot that begins later is right too: it was made before the new owner was opened, so nothing of the schema was
    written in between. Not so behind a handover that was sealed from outside: raises SilentGap then, and when the
    slot is missing.
    """
    if slot is None or slot.confirmed_flush is None:
        raise SilentGap(f"slot {name}, which the switchover made, does not exist any more")
    if slot.confirmed_flush > handover.confirmed_lsn:
        if handover.sealed:
            raise SilentGap(
                f"slot {name} begins at {format_lsn(slot.confirmed_flush)}, but {handover.source} published"
                f" {handover.gitlab_schema} only up to {format_lsn(handover.confirmed_lsn)}"
            )
        return startup.first_state(source, instance, name, system, slot.confirmed_flush)
    return startup.first_state(source, instance, name, system, handover.confirmed_lsn).model_copy(
        update={"commit_lsn": handover.commit_lsn, "ordinal": handover.ordinal}
    )


def owner_in(relation: Relation, values: Sequence[bytes | Unchanged | None]) -> tuple[str, Owner]:
    """Return gitlab schema and owner of a row of headrace.schema_ownership, as the stream has it."""
    texts = dict(zip((column.name for column in relation.columns), values, strict=True))
    gitlab_schema, owner, epoch = (text.decode() if isinstance(text := texts[name], bytes) else "" for name in _COLUMNS)
    assert UNCHANGED not in (texts[name] for name in _COLUMNS), "its values are too short to be stored elsewhere"
    return gitlab_schema, Owner(owner, int(epoch))
