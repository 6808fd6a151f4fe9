"""Checks a source for `headrace check`: what would refuse its start, how to recover, and when its slot is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg

from infra.cli.advice import Advice
from infra.kafka import denials, topic_requirements
from infra.kafka.topic_configurations import TopicConfigurations
from infra.postgres import standbys
from infra.postgres.connect import is_standby
from infra.postgres.control import database_name, opened_lsn, owners
from infra.rights import kafka_rights, privileges
from infra.settings.model import DatabaseSettings, Settings
from infra.settings.table_labels import TableLabels, label_line
from infra.state.positions import Positions, SnapshotState, SourceState
from producers.session import handover as ownership
from producers.session import resume, slot_monitor
from producers.session.slot_monitor import Forecast, Reading, WalGrowth
from producers.snapshot.connection_limits import shortage
from producers.source import gaps, preflight, slots
from producers.source import rights as producer_rights
from producers.source.preflight import Finding
from producers.source.publication import read_publication
from producers.source.tables import CapturedTable, captured_tables
from producers.source.transactions import blocking
from schemas.errors import HeadraceError, OwnershipMoved, Refused
from schemas.topics import positions_topic, schemas_topic

_MEASURED_SECONDS: Final = 1.0
"""How long WAL growth is measured when no producer has recorded its rate."""
_SHOWN: Final = 5
"""Advice that concerns most tables names no more of them."""
_SETTLED_SECONDS: Final = 5.0
"""A position that a producer confirmed is visible to every Kafka reader within this time."""


def hindrances(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    positions: Positions | None,
    topics: TopicConfigurations | None = None,
) -> list[Finding]:
    """Return everything that prevents `source` from being read, or commits from ending, each with its remedy.

    Changes nothing. `topics` are configurations that the caller may have read already.

    Without `positions`, since Kafka cannot be reached, the source's recorded state is not checked.
    """
    database = settings.database(source)
    if not database.tables and any(each.database == source for each in settings.virtual_storages.values()):
        return list(_of_another_name(connection, source))  # it records walks and is not a source itself
    name = slots.slot_name(settings, source, database)
    denied = list(_rights(connection, settings, source, positions))
    if denied:
        positions = None  # the recorded state may not be readable
    sources = positions.sources() if positions else {}
    stopped = resume.stopped_tables(connection, settings, source, sources.get(source, SourceState()))
    found = list(preflight.findings(connection, source, database, name, settings.prefix, leave_out=stopped))
    found = denied + found
    found += _of_another_name(connection, source)
    found += _half_made(connection, name)
    found += _standbys(connection, name)
    if positions is not None and not is_standby(connection):
        try:
            tables = captured_tables(connection, source, database, settings.prefix, leave_out=stopped)
        except Refused:
            tables = ()  # preflight reports it
        found += _topics(settings, tables, topics or TopicConfigurations(settings.kafka))
        found += _gaps(connection, settings, source, positions, tables)
        if not found:
            found += _unrecorded(connection, settings, source, sources, stopped, tables)
    if not is_standby(connection):
        found += preflight.of_commits(connection, source, name)
        found += _connections(connection, source, database.snapshot.workers)
    return found


def slot_now(connection: psycopg.Connection[Any], settings: Settings, source: str) -> Reading | None:
    """Return the current state of the slot of `source`, None without one."""
    return slot_monitor.read(connection, slots.slot_name(settings, source, settings.database(source)))


def outlook(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    positions: Positions | None,
    before: Reading | None = None,
) -> Forecast | None:
    """Return the forecast for the slot of `source`, None without a slot; `positions` as for `hindrances`.

    When no producer has recorded its rate, WAL growth is measured since `before`, a reading of this slot, for a second
    at least.
    """
    state = (positions.sources() if positions else {}).get(source, SourceState())
    reading = slot_now(connection, settings, source)
    if reading is None:
        return None
    rate = slot_monitor.remembered(state.stream, reading)
    if rate is None:
        first = before or reading
        growth = WalGrowth()
        growth.add(first.at, first.written)
        time.sleep(min(_MEASURED_SECONDS, max(0.0, _MEASURED_SECONDS - (reading.at - first.at))))
        reading = slot_now(connection, settings, source)
        if reading is None:
            return None
        growth.add(reading.at, reading.written)
        rate = growth.rate
    return slot_monitor.forecast(reading, rate)


def of_tables(connection: psycopg.Connection[Any], settings: Settings, source: str) -> Iterator[Advice]:
    """Yield advice about the captured tables that blocks no start."""
    database = settings.database(source)
    try:
        tables = captured_tables(connection, source, database, settings.prefix)
    except Refused:
        return  # preflight reports it
    yield from _contradicted_patterns(source, database, tables)
    yield from _partial_updates(source, tables)


def _contradicted_patterns(
    source: str, database: DatabaseSettings, tables: Sequence[CapturedTable]
) -> Iterator[Advice]:
    """Yield the captured tables that the dictionary puts into another gitlab schema than a pattern of the settings."""
    if found := TableLabels(source, database).contradicted(table.name for table in tables):
        counted = "1 captured table has" if len(found) == 1 else f"{len(found)} captured tables have"
        yield Advice(
            f"databases.{source}",
            f"{counted} another gitlab schema by a pattern of table_schemas than by the dictionary",
            tuple(label_line(table, label) for table, label in found.items()),
            f"if the dictionary is right, add them under [databases.{source}.table_schemas], where a name wins",
        )


def _partial_updates(source: str, tables: Sequence[CapturedTable]) -> Iterator[Advice]:
    """Yield the captured tables whose updates lack the old row, which some programs need."""
    if names := [table.name for table in tables if not (table.upserts or table.whole_old_rows)]:
        counted = "1 captured table lacks" if len(names) == 1 else f"{len(names)} captured tables lack"
        more = (f"and {len(names) - _SHOWN} more",) if len(names) > _SHOWN else ()
        yield Advice(
            f"databases.{source}",
            f"updates of {counted} the old row, or a part of it, by the replica identity",
            (*names[:_SHOWN], *more),
            "migrations, and sinks that write a row by its key, do not need it; for Flink's debezium-avro-confluent add"
            f" the tables to upsert_tables under [databases.{source}]; for programs that compare old and new row run"
            " ALTER TABLE … REPLICA IDENTITY FULL (docs/how-to/reading-with-other-tools.md)",
        )


def _rights(
    connection: psycopg.Connection[Any], settings: Settings, source: str, positions: Positions | None
) -> Iterator[Finding]:
    """Yield the rights that the producer lacks to start and to run."""
    # Preflight reports captured tables that may not be read.
    if lacks := privileges.lacking(connection, producer_rights.OWN_TABLES):
        role = connection.info.user
        yield Finding(
            f"role {role} lacks {'; '.join(lacks)}", f"grant it: `headrace init --sql {source}` prints what is needed"
        )
    if positions is None:
        return
    if found := kafka_rights.lacking(settings.kafka, *producer_rights.needed(connection, settings, source)):
        yield Finding(
            f"Kafka denies {denials.principal(settings.kafka)} {kafka_rights.listed(found)}",
            f"grant it: `headrace init --acls {source}` prints what is needed",
        )


def _of_another_name(connection: psycopg.Connection[Any], source: str) -> Iterator[Finding]:
    try:
        recorded = database_name(connection)
    except psycopg.errors.InsufficientPrivilege:
        return  # the script that creates the schema grants it, and preflight reports what else is missing
    if recorded not in (None, source):
        yield Finding(
            f"the settings call this database {source}, but it is recorded as {recorded} (headrace.database)",
            f"correct databases.{source}.dsn; if the database was moved on purpose, finish it with"
            f" `headrace switchover SCHEMA --from {recorded} --to {source}`",
        )


def _half_made(connection: psycopg.Connection[Any], slot: str) -> Iterator[Finding]:
    state = slots.read(connection, slot)
    if state is not None and not state.made and state.active_pid is not None:
        named = ", ".join(blocking(connection, state.active_pid)) or "a moment"
        yield Finding(
            f"slot {slot} is still being created by process {state.active_pid}, which waits for {named}",
            slots.SlotAwaited.__doc__ or "",
        )


def _standbys(connection: psycopg.Connection[Any], slot: str) -> Iterator[Finding]:
    if away := standbys.obstacles(connection, slot):
        yield Finding(f"slot {slot} sends no new changes: {', '.join(away)}", standbys.REMEDY)


def _connections(connection: psycopg.Connection[Any], source: str, workers: int) -> Iterator[Finding]:
    """Yield the limit that leaves the producer too few connections; it refuses no start: others may end meanwhile."""
    if short := shortage(connection, source, workers):
        some = f", {workers} of them for snapshot.workers" if workers > 1 else ""
        fewer = f", or lower databases.{source}.snapshot.workers" if workers > 1 else ""
        yield Finding(
            f"{short.limit} leaves the producer of {source} {short.left} of {short.opened} connections{some}",
            f"raise that limit, or end other sessions{fewer}",
        )


def _topics(settings: Settings, tables: Sequence[CapturedTable], configured: TopicConfigurations) -> Iterator[Finding]:
    """Yield the topics that would lose records they have to keep."""
    state = positions_topic(settings.prefix), schemas_topic(settings.prefix)
    for each in topic_requirements.unfit(configured, [table.topic for table in tables], state) if tables else ():
        yield Finding(each.problem, each.remedy)


def _gaps(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    positions: Positions,
    tables: Sequence[CapturedTable],
) -> Iterator[Finding]:
    """Yield the gap that a start would refuse, with its remedy."""
    name = slots.slot_name(settings, source, settings.database(source))
    deadline = time.monotonic() + _SETTLED_SECONDS
    while True:
        try:
            ownership.find(connection, settings, source, tables, positions)
        except gaps.SilentGap as gap:
            slot = slots.read(connection, name)
            if slot is None or slot.active_pid is None or time.monotonic() > deadline:
                yield Finding(gap.problem, gap.remedy)
                return
            time.sleep(0.2)
        except ownership.HandoverAwaited as awaited:
            yield Finding(awaited.problem, awaited.remedy)
            return
        except OwnershipMoved:
            return  # it has no tables left and needs no slot
        else:
            return


def _unrecorded(
    connection: psycopg.Connection[Any],
    settings: Settings,
    source: str,
    sources: Mapping[str, SourceState],
    stopped: Mapping[str, SnapshotState],
    tables: Sequence[CapturedTable],
) -> Iterator[Finding]:
    """Yield what else a start would refuse: a table whose topic cannot be continued, or that another database owns."""
    database = settings.database(source)
    state = sources.get(source, SourceState())
    for each in stopped.values():
        yield Finding(
            f"table {each.table} is stopped ({each.stopped}), and its topic lacks changes",
            f"fix the cause if possible, then re-snapshot it with `headrace snapshot {each.table} --from-scratch`",
        )
    captured = {table.name for table in tables}
    for each in state.snapshots.values():
        if each.stopped and each.table in captured:
            # It was stopped before any of its rows was published: the next start tries again.
            yield Finding(
                f"table {each.table} cannot be read ({each.stopped})",
                "put that right; then the next start of its producer reads it (docs/how-to/recovery.md)",
            )
    try:
        scope = ownership.source_scope(source, tables, sources, owners(connection))
        known = scope.of(state)
        publication = read_publication(connection, database.publication)
        snapshots = resume.current_snapshots(settings, source, known, scope.here(tables), publication)
        handover = scope.handover_before(snapshots)
        if known.stream is None and handover is not None:
            name = slots.slot_name(settings, source, database)
            slot, opened = slots.read(connection, name), opened_lsn(connection)
            ownership.first_state(source, "", name, slot, "", handover, opened)
    except HeadraceError as error:
        yield Finding(error.problem, error.remedy)
