"""Asking for a table to be read again: checked first, then told to its producer, or noted for its next start."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.kafka.topics import ONLY_PARTITION
from infra.postgres.connect import connect, translated
from infra.settings.model import Settings
from infra.state.positions import Positions, SnapshotState, SourceState, encode, record_key
from infra.state.snapshot_requests import SnapshotRequest, send_request
from producers.session import resume
from producers.session.acquire import sessions_of
from producers.session.snapshot_requests import RequestRefused, require_keys
from producers.source import gaps, slots
from producers.source.publication import Publication, read_publication
from producers.source.tables import CapturedTable, captured_tables
from producers.source.transactions import current_snapshot
from schemas.errors import BrokerUnavailable, Refused, UsageError
from schemas.positions import format_lsn
from schemas.topics import positions_topic

_SECONDS: Final = 30.0


class NotReadYet(Refused):
    """Start its producer with `headrace produce SOURCE`: it reads the whole table in any case."""


class ReadAnewOnly(Refused):
    """Read it anew: `headrace snapshot TABLE --anew`, which empties its topic first."""


def source_of(settings: Settings, table: str) -> str:
    """Return the database whose settings capture `table`; raises UsageError unless it is exactly one."""
    found = [
        name
        for name, database in settings.databases.items()
        if any(table == pattern or fnmatchcase(table, pattern) for pattern in database.tables)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{table} is captured of {', '.join(found)}", remedy="say which with --source")
    raise UsageError(
        f"{table} is captured of no database", remedy="name it as the settings do, such as public.projects"
    )


def ask(settings: Settings, source: str, request: SnapshotRequest) -> str:
    """Have rows of a table read again by the producer of `source`; return what happens now, in one line.

    A running producer takes it up at once, another one at its next start. Raises Refused where the table's topic
    would not be right afterwards, and UsageError for keys that are none of the table's.
    """
    database = settings.database(source)
    alone = database.model_copy(update={"tables": (request.table,)})
    dsn = database.dsn.get_secret_value()
    state = Positions(settings.prefix, settings.kafka).sources().get(source, SourceState())
    recorded = state.snapshots.get(request.table)
    if state.stream is None:
        raise NotReadYet(f"source {source} was never read")
    with connect(dsn, name=f"snapshot {source}", reading=True) as connection, translated(dsn):
        (table,) = captured_tables(connection, source, alone, settings.prefix)
        if table.hidden is not None:
            raise table.hidden
        slot = slots.slot_name(settings, source, database)
        held = slots.read(connection, slot)
        if held is not None:
            # A producer that runs may have moved it since the record was read.
            held = replace(held, confirmed_flush=None)
        resume.refuse_gaps(state, held, slot, resume.server_log(connection, dsn, state.stream))
        publication = read_publication(connection, database.publication)
        resume.refuse_other_publication(source, database.publication, state, publication)
        if (
            request.anew
            and not sessions_of(connection, slot)
            and _would_be_refused(connection, settings, source, state, table, publication)
        ):
            _note(settings, SnapshotState(source=source, table=table.name, topic=table.topic, anew=True))
            return f"{table.name} is read anew when the producer of {source} starts"
        if not request.anew:
            _require_readable(table.name, recorded)
            _require_keys(connection, table, request)
        send_request(connection, request)
        # Behind its commit: by then the stream has it.
        lsn = current_snapshot(connection)[1]
    return f"asked at {format_lsn(lsn)}: the producer of {source} reads {table.name} when it comes there"


def _would_be_refused(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    state: SourceState,
    table: CapturedTable,
    publication: Publication | None,
) -> bool:
    """Whether a start would be refused because of the table, or because no table is left that can be published."""
    stopped = resume.stopped_tables(connection, settings, source, state)
    if stopped.keys() >= state.snapshots.keys():
        return True
    if table.name in stopped:
        return False
    try:
        resume.standing_snapshots(settings, source, state, (table,), publication)
    except gaps.SilentGap:
        return True
    return False


def _require_readable(table: str, recorded: SnapshotState | None) -> None:
    if recorded is None:
        raise NotReadYet(f"{table} was never read")
    if recorded.stopped:
        raise ReadAnewOnly(f"{table} is stopped ({recorded.stopped}), so that its topic lacks changes")
    if not recorded.done:
        raise NotReadYet(f"{table} is being read for the first time")


def _require_keys(connection: psycopg.Connection[Any], table: CapturedTable, request: SnapshotRequest) -> None:
    """Raise UsageError for an end that is no key of the table; the producer asks the same again."""
    try:
        require_keys(connection, table, request)
    except RequestRefused as refused:
        raise UsageError(
            refused.problem, remedy="give --from and --to once for each column of the key, in that order"
        ) from refused


def _note(settings: Settings, state: SnapshotState) -> None:
    with clients.translated(settings.kafka):
        client = clients.producer(settings.kafka)
        client.produce(
            positions_topic(settings.prefix),
            partition=ONLY_PARTITION,
            key=record_key(state.source, state.table),
            value=encode(state),
        )
        if client.flush(_SECONDS):
            raise BrokerUnavailable(f"Kafka at {settings.kafka.bootstrap_servers} took no record in {_SECONDS:.0f} s")
