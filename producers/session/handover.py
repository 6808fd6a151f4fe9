"""Decides which gitlab schemas a source publishes: those its database owns, up to the change of owner in its stream.

The old owner's producer stops at that change and records it in the positions topic. The new owner's producer, which
reads a physical copy of the same WAL, continues after it. So a table's topic has one writer at a time, and no gap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from infra.postgres import control
from infra.postgres.control import Owner
from infra.settings.model import Settings
from infra.state.positions import (
    HandoverState,
    Positions,
    SnapshotState,
    SourceState,
    StreamState,
)
from producers.session import resume
from producers.source import gaps, slots
from producers.source.gaps import SilentGap
from producers.source.publication import Publication, read_publication
from producers.source.tables import CapturedTable
from schemas.errors import Fenced, OwnershipMoved, Refused, Unavailable
from schemas.gitlab_schemas import PER_DATABASE
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, format_lsn

if TYPE_CHECKING:
    from producers.publish.table_publisher import TableFeed


class HandoverAwaited(Unavailable):
    """Let the old owner's producer finish publishing; if it is lost, see docs/how-to/switchover.md."""


class TwoSources(Refused):
    """Only a switchover moves a gitlab schema from one source to another (docs/how-to/switchover.md)."""


@dataclass(frozen=True)
class Scope:
    """The tables that a source publishes when it starts.

    It does not publish the gitlab schemas in `away`; `given` is the progress of their snapshots. `inherited` is the
    progress of tables that other sources published before; the stream begins after their `handover`. Those in
    `returned` are the source's again: another database, of which this one is now a copy, has given them back. Other
    sources may have records of tables of the schemas in `moved`.
    """

    away: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()
    returned: frozenset[str] = frozenset()
    given: Mapping[str, SnapshotState] = field(default_factory=dict)
    inherited: Mapping[str, SnapshotState] = field(default_factory=dict)
    handover: HandoverState | None = None

    def here(self, tables: Iterable[CapturedTable]) -> tuple[CapturedTable, ...]:
        """Return those of `tables` that the source publishes."""
        return tuple(table for table in tables if table.gitlab_schema not in self.away)

    def of(self, state: SourceState) -> SourceState:
        """Return the source's recorded state, as far as it is still valid.

        Schemas that another database gave back continue in that database's WAL, so the earlier stream is over. Other
        tables published from it belong to a database that no longer exists, and are re-snapshotted from scratch.
        """
        if not self.returned:
            return SourceState(state.stream, {**self.inherited, **state.snapshots}, state.handovers)
        rest = {
            name: SnapshotState(source=each.source, table=name, topic=each.topic, from_scratch=True)
            for name, each in state.snapshots.items()
        }
        return SourceState(None, {**self.inherited, **rest}, state.handovers)

    def handover_before(self, snapshots: Mapping[str, SnapshotState]) -> HandoverState | None:
        """Return the handover after which a first stream begins; None when every table is snapshotted from scratch."""
        return self.handover if any(not each.from_scratch for each in snapshots.values()) else None


def source_scope(
    source: str,
    tables: Sequence[CapturedTable],
    sources: Mapping[str, SourceState],
    owners: Mapping[str, Owner],
) -> Scope:
    """Return what `source` publishes of its tables' gitlab schemas, by all sources' records and its own database.

    Its own record precedes the database's row, which is the current one: a producer that lags has yet to publish what
    was written before the change of owner. Raises HandoverAwaited while another source has not yet published all that
    this database was given, TwoSources if one does without a switchover, and OwnershipMoved when no table is left.
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
    away, for_good = set[str](), set[str]()
    given: dict[str, SnapshotState] = {}
    for gitlab_schema in schemas.keys() - returned.keys():
        owner = owners.get(gitlab_schema)
        claimed = any(table.name in state.snapshots for table in schemas[gitlab_schema])
        if record := state.handovers.get(gitlab_schema):
            away.add(gitlab_schema)
            given |= {each.table: each for each in record.snapshots}
            # A different epoch means that the stream has changes of owner that were not read yet.
            if owner is not None and owner.epoch == record.epoch:
                for_good.add(gitlab_schema)
        elif owner is not None and owner.name != source and not claimed:
            last = _last_handover(source, gitlab_schema, sources) if state.stream is None else None
            if last is not None and last.owner == source:
                taken[gitlab_schema] = last  # passed on already: changes written in between are in this WAL
            else:
                away.add(gitlab_schema)  # never published by this source, whatever the settings capture
                for_good.add(gitlab_schema)
        elif returned and claimed:
            raise _stale(source, gitlab_schema, returned)
        elif (returned or state.stream is None) and (handover := taken_over(gitlab_schema)) is not None:
            taken[gitlab_schema] = handover
    if tables and all(table.gitlab_schema in for_good for table in tables):
        raise _all_given(source)
    refuse_second_source(source, tables, away | taken.keys(), sources, owners)
    return Scope(
        away=frozenset(away),
        moved=frozenset(away | taken.keys()),
        returned=frozenset(returned),
        given=given,
        inherited=_inherited(source, taken.values()),
        # Nothing is written between a schema's change of owner and its opening on the new owner: the last one counts.
        handover=max(taken.values(), key=lambda each: each.confirmed_lsn, default=None),
    )


def _inherited(source: str, taken: Iterable[HandoverState]) -> dict[str, SnapshotState]:
    """Return table → its snapshot, as the record of `source` has it from now on."""
    return {each.table: each.model_copy(update={"source": source}) for handover in taken for each in handover.snapshots}


def _by_gitlab_schema(tables: Sequence[CapturedTable]) -> dict[str, list[CapturedTable]]:
    """Return gitlab schema → its tables, for the schemas that can move."""
    schemas: dict[str, list[CapturedTable]] = {}
    for table in tables:
        if table.gitlab_schema not in PER_DATABASE:
            schemas.setdefault(table.gitlab_schema, []).append(table)
    return schemas


def refuse_second_source(
    source: str,
    tables: Iterable[CapturedTable],
    moved: Collection[str],
    sources: Mapping[str, SourceState],
    owners: Mapping[str, Owner],
) -> None:
    """Raise TwoSources if another source publishes one of `tables`; of the gitlab schemas in `moved`, it may."""
    others = [(name, each) for name, state in sources.items() if name != source for each in state.snapshots.values()]
    publishing = {each.topic: name for name, each in others}
    for table in tables:
        other = publishing.get(table.topic)
        if other is not None and table.gitlab_schema not in moved and owned(table, source, owners):
            raise TwoSources(
                f"{other} publishes {table.name} to topic {table.topic} too, and no switchover moved"
                f" {table.gitlab_schema} from {other} to {source}",
                remedy=f"give the tables of {source} a gitlab schema of their own in table_schemas, or use another"
                f" prefix; if {other} no longer exists, {gaps.start_over_with(source)}",
            )


def _stale(source: str, gitlab_schema: str, returned: Iterable[str]) -> SilentGap:
    return SilentGap(
        f"{gitlab_schema} was published from a different server than this copy, where"
        f" {', '.join(sorted(returned))} came back to {source}: its rows here are stale",
        remedy=f"point databases.{source}.dsn at the server that has it; a copy of another server needs its own name",
    )


class Found(NamedTuple):
    """What a start is based on: the recorded state, the tables to publish, the server's WAL, and the publication."""

    state: SourceState
    scope: Scope
    server: resume.ServerWal
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
    """Return where the source of `tables` continues, by its WAL, its slot and the recorded state.

    Not `alone`: another producer of it may be running. Raises SilentGap, HandoverAwaited or OwnershipMoved where it
    cannot continue now, and Fenced where a process other than `instance` (None: any) wrote its last record.
    """
    slot_name = slots.slot_name(settings, source, settings.database(source))
    # The slot first: a running producer advances it to what is in Kafka, which can be read a moment later.
    slot = slots.read(connection, slot_name)
    if slot is not None and not alone:
        # A commit returns a moment before readers see it, and a running producer confirms it at once.
        slot = replace(slot, confirmed_flush=None)
    sources = positions.sources()
    state = sources.get(source, SourceState())
    if instance is not None and state.stream is not None and state.stream.instance != instance:
        raise Fenced(f"another producer of {source} took over: {state.stream.instance}")
    server = resume.server_wal(connection, state.stream)
    found = source_scope(source, tables, sources, control.owners(connection))
    # State from before schemas came back belongs to a lost server that continued after its copy's promotion.
    known = found.of(state)
    resume.refuse_gaps(known, slot, slot_name, server)
    name = settings.database(source).publication
    publication = read_publication(connection, name)
    if slot is None or slot.database == connection.info.dbname:  # else preflight names the dsn
        # Inherited tables were published from another server; their publication is compared later, table by table.
        own = SourceState(known.stream, {each: known.snapshots[each] for each in state.snapshots})
        resume.refuse_other_publication(source, name, own, publication)
    return Found(state, found, server, publication)


def owned(table: CapturedTable, source: str, owners: Mapping[str, Owner]) -> bool:
    """Whether `source` owns the table by the database's own rows; an unclaimed gitlab schema counts as owned."""
    owner = owners.get(table.gitlab_schema)
    return table.gitlab_schema in PER_DATABASE or owner is None or owner.name == source


def require_any_here(source: str, feeds: Sequence[TableFeed]) -> None:
    """Raise OwnershipMoved when every table has another owner."""
    if all(feed.away for feed in feeds):
        raise _all_given(source)


def _all_given(source: str) -> OwnershipMoved:
    return OwnershipMoved(
        f"database {source} has given every captured table to another database",
        remedy="drop its slot once the switchover is complete, or take the switchover back and restart the producer",
    )


def _handover_to(
    source: str,
    gitlab_schema: str,
    epoch: int,
    tables: Iterable[CapturedTable],
    sources: Mapping[str, SourceState],
    record: HandoverState | None,
) -> HandoverState | None:
    """Return the record that makes `source` the next publisher of `gitlab_schema`; None: no source published it since.

    `record` is the source's own, from when it last gave the gitlab schema away, if it ever did. Raises HandoverAwaited
    while another source still has to publish.
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
    # The last source that gave it away may own it again, or may have given it to a source that has not started yet.
    gave = sorted((given for given in found.values() if given.epoch > since), key=lambda each: each.epoch)
    pending = publishing or [each.source if each.owner == source else each.owner for each in gave[-1:]]
    if pending:
        raise HandoverAwaited(
            f"{gitlab_schema} was given to {source}, but the producer of {pending[0]} has not yet published all earlier"
            " changes"
        )
    return None


def _last_handover(source: str, gitlab_schema: str, sources: Mapping[str, SourceState]) -> HandoverState | None:
    """Return the latest handover that other sources recorded; a schema that was passed on has a record from each."""
    records = (state.handovers.get(gitlab_schema) for name, state in sources.items() if name != source)
    return max((given for given in records if given is not None), key=lambda given: given.epoch, default=None)


def first_state(
    source: str,
    instance: str,
    name: str,
    slot: slots.SlotState | None,
    system: str,
    handover: HandoverState,
    opened: Lsn | None,
) -> StreamState:
    """Return the state of a stream that begins after `handover`.

    A slot that begins later is sufficient if it was ready before the database was `opened`, since the gitlab schema was
    not written in between. Raises SilentGap otherwise, or when the slot is missing.
    """
    if slot is None:
        raise SilentGap(
            f"slot {name}, which the switchover created, no longer exists", remedy=gaps.start_over_with(source)
        )
    if not slot.made:
        raise SilentGap(
            f"slot {name} is still being created by process {slot.active_pid}, and lacks changes written meanwhile",
            remedy=f"complete it with `headrace switchover`; if it is complete, {gaps.start_over_with(source)}",
        )
    if slot.confirmed_flush is None or slot.confirmed_flush <= handover.confirmed_lsn:
        return resume.first_state(source, instance, name, system, handover.confirmed_lsn).model_copy(
            update={"commit_lsn": handover.commit_lsn, "ordinal": handover.ordinal}
        )
    begins = f"slot {name} begins at {format_lsn(slot.confirmed_flush)}"
    if opened is None:
        raise SilentGap(
            f"{begins}, after {handover.gitlab_schema} was given to {source} at {format_lsn(handover.commit_lsn)}, and"
            " headrace.database does not record when it was opened: changes in between may be in no topic",
            remedy=gaps.start_over_with(source),
        )
    if slot.confirmed_flush > opened:
        raise SilentGap(
            f"{begins}, after {handover.gitlab_schema} was opened here at {format_lsn(opened)}: changes in between are"
            " in no topic",
            remedy=gaps.start_over_with(source),
        )
    return resume.first_state(source, instance, name, system, slot.confirmed_flush)
