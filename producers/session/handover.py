"""Which gitlab schemas a source publishes: those its database owns, up to the change of owner in its own stream.

The old owner's producer stops at that change and says so in the positions topic; the new owner's, which reads a
physical copy of the same log, goes on behind it. So a table's topic has one writer at a time, and no gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import psycopg
from pydantic import BaseModel

from infra.postgres import control
from infra.postgres.control import Owner
from infra.settings.model import Settings
from infra.state.positions import (
    HandoverState,
    Positions,
    SnapshotState,
    SourceState,
    StreamState,
    handover_key,
    record_key,
)
from producers.publish.kafka_transaction import Relay
from producers.publish.table_publisher import TableFeed
from producers.session import resume
from producers.source import gaps, slots
from producers.source.gaps import SilentGap
from producers.source.publication import Publication, read_publication
from producers.source.tables import CapturedTable
from schemas.errors import Fenced, OwnershipMoved, Unavailable
from schemas.gitlab_schemas import GITLAB_SHARED
from schemas.positions import Lsn, format_lsn
from schemas.topics import positions_topic


class HandoverAwaited(Unavailable):
    """Let the old owner's producer run until it has published all; if it never will, see docs/how-to/switchover.md."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a source publishes of its tables when it starts.

    The tables of the gitlab schemas in `away` are left alone; `given` is how far they were copied. `inherited` is how
    far those are that others published before, behind whose `handover` the stream begins. Those in `returned` are the
    source's again: another database, a copy of which it is now, has given them back.
    """

    away: frozenset[str] = frozenset()
    returned: frozenset[str] = frozenset()
    given: Mapping[str, SnapshotState] = field(default_factory=dict)
    inherited: Mapping[str, SnapshotState] = field(default_factory=dict)
    handover: HandoverState | None = None

    def here(self, tables: Iterable[CapturedTable]) -> tuple[CapturedTable, ...]:
        """Return those of `tables` that the source publishes."""
        return tuple(table for table in tables if table.gitlab_schema not in self.away)

    def of(self, state: SourceState) -> SourceState:
        """Return what is recorded of the source, as far as it still counts.

        What another database gave back comes in that one's log: the stream of before is over. The rest of what was
        published then is of a database that is no more, and is read anew.
        """
        if not self.returned:
            return SourceState(state.stream, {**self.inherited, **state.snapshots}, state.handovers)
        rest = {
            name: SnapshotState(source=each.source, table=name, topic=each.topic, anew=True)
            for name, each in state.snapshots.items()
        }
        return SourceState(None, {**self.inherited, **rest}, state.handovers)

    def behind(self, snapshots: Mapping[str, SnapshotState]) -> HandoverState | None:
        """Return the handover that a first stream begins behind; None where every table is to be read anew anyway."""
        return self.handover if any(not each.anew for each in snapshots.values()) else None


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
    schemas = _by_gitlab_schema(tables)

    def taken_over(gitlab_schema: str) -> HandoverState | None:
        owner, record = owners.get(gitlab_schema), state.handovers.get(gitlab_schema)
        if owner is None or owner.name != source or owner.epoch == 1:
            return None
        return _handover_to(source, gitlab_schema, owner.epoch, schemas[gitlab_schema], sources, record)

    returned = {each: found for each in schemas if each in state.handovers and (found := taken_over(each)) is not None}
    taken = dict(returned)
    away: set[str] = set()
    for_good: set[str] = set()
    given: dict[str, SnapshotState] = {}
    for gitlab_schema in schemas.keys() - returned.keys():
        owner = owners.get(gitlab_schema)
        claimed = any(table.name in state.snapshots for table in schemas[gitlab_schema])
        if record := state.handovers.get(gitlab_schema):
            away.add(gitlab_schema)
            given |= {each.table: each for each in record.snapshots}
            # With another epoch there are changes of owner in the stream that were not read yet.
            if owner is not None and owner.epoch == record.epoch:
                for_good.add(gitlab_schema)
        elif owner is not None and owner.name != source and not claimed:
            last = _last_handover(source, gitlab_schema, sources) if state.stream is None else None
            if last is not None and last.owner == source:
                taken[gitlab_schema] = last  # given on already: what was written in between is in the WAL here
            else:
                away.add(gitlab_schema)  # never ours to publish, whatever the settings capture
                for_good.add(gitlab_schema)
        elif returned and claimed:
            raise _stale(source, gitlab_schema, returned)
        elif (returned or state.stream is None) and (handover := taken_over(gitlab_schema)) is not None:
            taken[gitlab_schema] = handover
    if tables and all(table.gitlab_schema in for_good for table in tables):
        raise _all_given(source)
    return Standing(
        away=frozenset(away),
        returned=frozenset(returned),
        given=given,
        inherited={
            each.table: each.model_copy(update={"source": source})
            for handover in taken.values()
            for each in handover.snapshots
        },
        # Nothing is written between a schema's change of owner and the opening of the new one: the last one counts.
        handover=max(taken.values(), key=lambda each: each.confirmed_lsn, default=None),
    )


def _by_gitlab_schema(tables: Sequence[CapturedTable]) -> dict[str, list[CapturedTable]]:
    """Return gitlab schema → its tables, of those that move."""
    schemas: dict[str, list[CapturedTable]] = {}
    for table in tables:
        if table.gitlab_schema != GITLAB_SHARED:
            schemas.setdefault(table.gitlab_schema, []).append(table)
    return schemas


def _stale(source: str, gitlab_schema: str, returned: Iterable[str]) -> SilentGap:
    return SilentGap(
        f"{gitlab_schema} was published from another server than this copy, in which"
        f" {', '.join(sorted(returned))} came back to {source}: its rows here are stale",
        remedy=f"point databases.{source}.dsn at the server that has it; a copy of another needs its own name",
    )


class Found(NamedTuple):
    """What a start goes by: what is recorded, where the source is by that, the server's log, and the publication."""

    state: SourceState
    standing: Standing
    server: resume.ServerLog
    publication: Publication | None


def find(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    tables: Sequence[CapturedTable],
    positions: Positions,
    instance: str | None = None,
    *,
    alone: bool = True,
) -> Found:
    """Return where the source of `tables` goes on, by its log, its slot and all that is recorded.

    Not `alone`: another producer of it may be running. Raises SilentGap, HandoverAwaited or OwnershipMoved where it may
    not go on now, and Fenced where another process than `instance` (None: whoever) has recorded it last.
    """
    slot_name = slots.slot_name(settings, source, settings.database(source))
    # The slot first: a producer that runs moves it up to what is in Kafka, where it can be read a moment later.
    slot = slots.read(connection, slot_name)
    if slot is not None and not alone:
        # A commit returns a moment before readers see it, and a producer that runs confirms it at once.
        slot = replace(slot, confirmed_flush=None)
    sources = positions.sources()
    state = sources.get(source, SourceState())
    if instance is not None and state.stream is not None and state.stream.instance != instance:
        raise Fenced(f"another producer of {source} took over: {state.stream.instance}")
    server = resume.server_log(connection, settings.database(source).dsn.get_secret_value(), state.stream)
    found = standing(source, tables, sources, control.owners(connection))
    # What it was before some came back was of a server that is no more, and that went on after its copy was promoted.
    known = found.of(state)
    resume.refuse_gaps(known, slot, slot_name, server)
    name = settings.database(source).publication
    publication = read_publication(connection, name)
    if slot is None or slot.database == connection.info.dbname:  # else preflight names the dsn
        # What it inherits was published from another server, and so table by table is compared later.
        own = SourceState(known.stream, {each: known.snapshots[each] for each in state.snapshots})
        resume.refuse_other_publication(source, name, own, publication)
    return Found(state, found, server, publication)


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
    record: HandoverState | None,
) -> HandoverState | None:
    """Return the record that makes `source` the next publisher of `gitlab_schema`; None: nobody published it since.

    `record` is the source's own of when it gave the gitlab schema away, if it ever did. Raises HandoverAwaited while
    another source still has to publish.
    """
    topics = {table.topic for table in tables}
    others = {name: state for name, state in sources.items() if name != source}
    found = {name: state.handovers[gitlab_schema] for name, state in others.items() if gitlab_schema in state.handovers}
    for given in found.values():
        if (given.owner, given.epoch) == (source, epoch):
            return given
    publishing = [
        name
        for name, state in others.items()
        if name not in found and any(each.topic in topics for each in state.snapshots.values())
    ]
    since = record.epoch if record is not None else 0
    # Of those that gave it away, the last is the one that may have had it again, or gave it to who has not begun yet.
    gave = sorted((given for given in found.values() if given.epoch > since), key=lambda each: each.epoch)
    behind = publishing or [each.source if each.owner == source else each.owner for each in gave[-1:]]
    if behind:
        raise HandoverAwaited(
            f"{gitlab_schema} was given to {source}, and the producer of {behind[0]} has not yet published all before"
        )
    return None


def _last_handover(source: str, gitlab_schema: str, sources: Mapping[str, SourceState]) -> HandoverState | None:
    """Return the latest of what sources other than `source` recorded: of one that was given on, each has a record."""
    records = (state.handovers.get(gitlab_schema) for name, state in sources.items() if name != source)
    return max((given for given in records if given is not None), key=lambda given: given.epoch, default=None)


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
    source: str,
    instance: str,
    name: str,
    slot: slots.SlotState | None,
    system: str,
    handover: HandoverState,
    opened: Lsn | None,
) -> StreamState:
    """Return the state of a stream that begins behind `handover`.

    A slot that begins later is right where it was ready before the database was `opened`, since nothing of the gitlab
    schema was written in between. Raises SilentGap where that is not so, or the slot is not there.
    """
    if slot is None:
        raise SilentGap(
            f"slot {name}, which the switchover made, does not exist any more", remedy=gaps.start_over_with(source)
        )
    if not slot.made:
        raise SilentGap(
            f"slot {name} is still being made by process {slot.active_pid}, and lacks what is written meanwhile",
            remedy=f"run `headrace switchover` to its end; if it is complete, {gaps.start_over_with(source)}",
        )
    if slot.confirmed_flush is None or slot.confirmed_flush <= handover.confirmed_lsn:
        return resume.first_state(source, instance, name, system, handover.confirmed_lsn).model_copy(
            update={"commit_lsn": handover.commit_lsn, "ordinal": handover.ordinal}
        )
    begins = f"slot {name} begins at {format_lsn(slot.confirmed_flush)}"
    if opened is None:
        raise SilentGap(
            f"{begins}, after {handover.gitlab_schema} was given to {source} at {format_lsn(handover.commit_lsn)}, and"
            " headrace.database does not say when it was opened: what was written in between may be in no topic",
            remedy=gaps.start_over_with(source),
        )
    if slot.confirmed_flush > opened:
        raise SilentGap(
            f"{begins}, after {handover.gitlab_schema} was opened here at {format_lsn(opened)}: what was written in"
            " between is in no topic",
            remedy=gaps.start_over_with(source),
        )
    return resume.first_state(source, instance, name, system, slot.confirmed_flush)
