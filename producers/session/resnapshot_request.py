"""Requests a re-snapshot of a table: checks it, then sends it to the producer or records it for the next start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.kafka.topics import ONLY_PARTITION
from infra.postgres.connect import session
from infra.postgres.moments import current_moment
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from infra.state.positions import Positions, SnapshotState, SourceState, encode, record_key
from infra.state.snapshot_requests import RequestRefused, SnapshotRequest, send_request
from producers.publish.registry_check import changed_registry
from producers.session import resume
from producers.session.snapshot_requests import require_keys
from producers.source import gaps, slots
from producers.source.publication import Publication, read_publication
from producers.source.tables import CapturedTable, captured_tables
from schemas.errors import BrokerUnavailable, Refused, Unavailable, UsageError
from schemas.positions import format_lsn
from schemas.topics import positions_topic

_SECONDS: Final = 30.0


class NotReadYet(Refused):
    """Start its producer with `headrace produce SOURCE`, which reads the whole table."""


class FromScratchOnly(Refused):
    """Re-snapshot it with `headrace snapshot TABLE --from-scratch`, which empties its topic first."""


def ask(settings: Settings, source: str, request: SnapshotRequest, actor: Actor | None = None) -> str:
    """Request that the producer of `source` re-snapshots rows of a table; return what happens next, in one line.

    A running producer starts at once, a stopped one at its next start. Raises Refused when the table's topic would
    still be wrong afterwards, and UsageError for keys that do not match the table's key.
    """

    def record(connection: psycopg.Connection[Any]) -> None:
        record_action(
            connection,
            OperatorAction.SNAPSHOT,
            [request.table],
            actor,
            source=source,
            first=request.first,
            last=request.last,
            from_scratch=request.from_scratch,
        )

    database = settings.database(source)
    alone = database.model_copy(update={"tables": (request.table,)})
    state = Positions(settings.prefix, settings.kafka).sources().get(source, SourceState())
    recorded = state.snapshots.get(request.table)
    if state.stream is None:
        raise NotReadYet(f"source {source} has never been read")
    with session(database, name=f"snapshot {source}", reading=True) as connection:
        (table,) = captured_tables(connection, source, alone, settings.prefix)
        if table.hidden is not None:
            raise table.hidden
        slot = slots.slot_name(settings, source, database)
        held = slots.read(connection, slot)
        if held is not None:
            # A running producer may have advanced it since the record was read.
            held = replace(held, confirmed_flush=None)
        resume.refuse_gaps(state, held, slot, resume.server_wal(connection, state.stream))
        publication = read_publication(connection, database.publication)
        resume.refuse_other_publication(source, database.publication, state, publication)
        if (
            request.from_scratch
            and not slots.sessions_of(connection, slot)
            and _would_be_refused(connection, settings, source, state, table, publication)
        ):
            with connection.transaction():
                record(connection)
                # Before the commit: what Kafka does not accept is not recorded either.
                record_for_next_start(
                    settings, SnapshotState(source=source, table=table.name, topic=table.topic, from_scratch=True)
                )
            return f"{table.name} is re-snapshotted when the producer of {source} starts"
        if not request.from_scratch:
            _require_readable(table.name, recorded)
            _require_keys(connection, table, request)
        with connection.transaction():
            send_request(connection, request)
            record(connection)
        # After its commit: the stream has it before this position.
        lsn = current_moment(connection).lsn
    return f"requested at {format_lsn(lsn)}: the producer of {source} re-snapshots {table.name} once it is there"


def _would_be_refused(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    state: SourceState,
    table: CapturedTable,
    publication: Publication | None,
) -> bool:
    """Whether a start would be refused because of the table, or because no publishable table is left."""
    stopped = resume.stopped_tables(connection, settings, source, state)
    if stopped.keys() >= state.snapshots.keys():
        return True
    if table.name in stopped:
        return False
    try:
        resume.current_snapshots(settings, source, state, (table,), publication)
    except gaps.SilentGap:
        return True
    recorded = {name: each for name, each in state.snapshots.items() if name == table.name}
    try:
        return any(changed_registry(settings, {source: recorded}))
    except Unavailable:
        return False


def _require_readable(table: str, recorded: SnapshotState | None) -> None:
    if recorded is None:
        raise NotReadYet(f"{table} has never been read")
    if recorded.stopped:
        raise FromScratchOnly(f"{table} is stopped ({recorded.stopped}), and its topic lacks changes")
    if not recorded.done:
        raise NotReadYet(f"{table} is being read for the first time")


def _require_keys(connection: psycopg.Connection[Any], table: CapturedTable, request: SnapshotRequest) -> None:
    """Raise UsageError for a bound that does not match the table's key; the producer checks it again."""
    try:
        require_keys(connection, table, request)
    except RequestRefused as refused:
        raise UsageError(
            refused.problem, remedy="give --from and --to once for each column of the key, in that order"
        ) from refused


def record_for_next_start(settings: Settings, state: SnapshotState) -> None:
    """Record the state of a table whose producer does not run, or would not get a request in the stream.

    Raises BrokerUnavailable when Kafka does not accept it.
    """
    with clients.translated(settings.kafka):
        client = clients.producer(settings.kafka)
        client.produce(
            positions_topic(settings.prefix),
            partition=ONLY_PARTITION,
            key=record_key(state.source, state.table),
            value=encode(state),
        )
        if client.flush(_SECONDS):
            raise BrokerUnavailable(
                f"Kafka at {settings.kafka.bootstrap_servers} accepted no record within {_SECONDS:.0f} s"
            )
