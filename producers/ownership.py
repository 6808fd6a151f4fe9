"""Which gitlab schemas a source publishes: those its database owns, up to the change of owner in its own stream.

The old owner's producer stops at that change and says so in the positions topic; the new owner's, which reads a
physical copy of the same log, goes on behind it. So a table's topic has one writer at a time, and no gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from infra.control import Owner
from infra.positions import HandoverState, Positions, SnapshotState, SourceState, StreamState, handover_key, record_key
from infra.settings import Settings
from producers import slots, startup
from producers.feed import TableFeed
from producers.relay import Relay
from producers.startup import SilentGap
from producers.tables import CapturedTable
from schemas.errors import OwnershipMoved, Unavailable
from schemas.events import UNCHANGED, Relation, Unchanged
from schemas.gitlab_schemas import GITLAB_SHARED
from schemas.topics import positions_topic

_COLUMNS: Final = ("gitlab_schema", "owner", "epoch")


class HandoverAwaited(Unavailable):
    """Let the old owner's producer run until it has published all; if it never will, see docs/how-to/switchover.md."""


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


def seal(
    settings: Settings, source: str, tables: Sequence[CapturedTable], owners: Mapping[str, Owner]
) -> tuple[str, ...]:
    """End, for what `source` owns now, the sources that published it before; return their names.

    For one that is gone for good before it has published all. To be called when the tables' topics were deleted, since
    they lack something. A producer of theirs that still runs is fenced, and leaves these tables alone from then on.
    """
    sealed = []
    for name, state in Positions(settings.prefix, settings.kafka).sources().items():
        records = [] if name == source else list(_sealing(name, state, source, tables, owners))
        if records:
            relay = Relay(settings.kafka, f"{settings.prefix}.{name}", positions_topic(settings.prefix))
            try:
                relay.record(records)
                relay.commit()
            finally:
                relay.close()
            sealed.append(name)
    return tuple(sealed)


def _sealing(
    name: str, state: SourceState, source: str, tables: Iterable[CapturedTable], owners: Mapping[str, Owner]
) -> Iterator[tuple[bytes, BaseModel | None]]:
    by_topic = {table.topic: table.gitlab_schema for table in tables if table.gitlab_schema != GITLAB_SHARED}
    for gitlab_schema in sorted(set(by_topic.values())):
        owner, stream = owners.get(gitlab_schema), state.stream
        given = state.handovers.get(gitlab_schema)
        claimed = [each for each in state.snapshots.values() if by_topic.get(each.topic) == gitlab_schema]
        if owner is None or owner.name != source or stream is None or not (claimed or given):
            continue
        if given is None or given.epoch != owner.epoch:
            yield from ((record_key(name, each.table), None) for each in claimed)
            yield (
                handover_key(name, gitlab_schema),
                HandoverState(
                    source=name,
                    gitlab_schema=gitlab_schema,
                    owner=source,
                    epoch=owner.epoch,
                    commit_lsn=stream.commit_lsn,
                    ordinal=stream.ordinal,
                    confirmed_lsn=stream.confirmed_lsn,
                ),
            )


def first_state(
    source: str, instance: str, name: str, slot: slots.SlotState | None, system: str, handover: HandoverState
) -> StreamState:
    """Return the state of a stream that begins behind `handover`.

    A slot that begins later is right too: it was made before the new owner was opened, so nothing of the schema was
    written in between. Raises SilentGap when the slot is missing.
    """
    if slot is None or slot.confirmed_flush is None:
        raise SilentGap(f"slot {name}, which the switchover made, does not exist any more")
    if slot.confirmed_flush > handover.confirmed_lsn:
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
