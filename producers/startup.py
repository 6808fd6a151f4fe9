"""Where a producer goes on: the slot, the recorded position, and the refusals that keep a gap from being silent."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import psycopg

from infra.positions import SnapshotState, SourceState, StreamState
from infra.settings import DatabaseSettings, Settings
from infra.topics import end_offsets
from producers import slots
from producers.tables import CapturedTable, captured_tables
from schemas.errors import Refused
from schemas.positions import Lsn, format_lsn


class SilentGap(Refused):
    """Start over with `headrace produce SOURCE --start-over`: with a new slot it reads all tables anew."""


def slot_name(settings: Settings, source: str, database: DatabaseSettings) -> str:
    """Return the slot of a source: the settings' own, else one made of prefix and source."""
    return database.slot or f"{settings.prefix}_{source}".lower().replace("-", "_")


def system_identifier(connection: psycopg.Connection[Any]) -> str:
    """Return what tells one PostgreSQL cluster (with its physical copies) from every other."""
    row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    assert row is not None
    return str(row[0])


def refuse_gaps(state: SourceState, slot: slots.SlotState | None, name: str, system: str) -> None:
    """Raise SilentGap, naming the positions, unless slot and recorded position fit together.

    They fit when there is neither, when a slot waits for its first record, or when the slot stands at or before the
    recorded position. Everything else would skip changes without anybody knowing.
    """
    stream = state.stream
    if slot is not None and slot.lost:
        raise SilentGap(f"slot {name} is lost ({slot.invalidation_reason or slot.wal_status}): its changes are gone")
    if stream is None:
        return
    recorded = format_lsn(stream.confirmed_lsn)
    if stream.system_identifier != system:
        raise SilentGap(
            f"the topics of {stream.source} are of database system {stream.system_identifier}, this one is {system}",
            remedy="correct the dsn, or start over with `headrace produce SOURCE --start-over`",
        )
    if slot is None:
        raise SilentGap(f"the topics of {stream.source} stand at {recorded}, but slot {name} does not exist any more")
    if slot.confirmed_flush is not None and slot.confirmed_flush > stream.confirmed_lsn:
        raise SilentGap(
            f"slot {name} stands at {format_lsn(slot.confirmed_flush)}, ahead of the topics at {recorded}:"
            " something else has read it"
        )


def standing_snapshots(
    settings: Settings, state: SourceState, tables: tuple[CapturedTable, ...], published: frozenset[str] | None
) -> dict[str, SnapshotState]:
    """Return how far each table's snapshot is, by name; a table whose topic is empty is left out, to be read anew.

    Raises SilentGap for a topic that has rows of which nothing is recorded, since nobody knows what it lacks, and for
    one whose table is not among the `published`, since its changes since it was taken out are unknown.
    """
    standing: dict[str, SnapshotState] = {}
    for table in tables:
        if not any(end_offsets(settings.kafka, table.topic).values()):
            continue
        recorded = state.snapshots.get(table.name)
        remedy = f"have it read anew with `headrace snapshot {table.name} --anew`"
        if recorded is not None and recorded.anew:
            standing[table.name] = recorded
            continue
        if recorded is None or recorded.topic != table.topic:
            raise SilentGap(
                f"topic {table.topic} has records, but there is no record of how table {table.name} was read",
                remedy=remedy,
            )
        if table.name not in (published or ()):
            raise SilentGap(
                f"topic {table.topic} has records, but table {table.name} was taken out of the publication since",
                remedy=remedy,
            )
        standing[table.name] = recorded
    return standing


def stopped_tables(
    connection: psycopg.Connection[Any], settings: Settings, source: str, state: SourceState
) -> dict[str, SnapshotState]:
    """Return the recorded tables of which nothing can be published, by name, each with the reason in `stopped`.

    Those that a producer stopped, and those that have since become what cannot be captured. One whose topic is empty
    is none: it can be read anew, or is refused like a table that was never captured.
    """
    database = settings.database(source)
    recorded = {
        name: snapshot
        for name, snapshot in state.snapshots.items()
        if any(fnmatchcase(name, pattern) for pattern in database.tables)
        and any(end_offsets(settings.kafka, snapshot.topic).values())
    }
    stopped = {name: snapshot for name, snapshot in recorded.items() if snapshot.stopped and not snapshot.anew}
    try:
        captured_tables(connection, source, database, settings.prefix, leave_out=stopped)
    except Refused:
        for name in recorded.keys() - stopped.keys():
            alone = database.model_copy(update={"tables": (name,)})
            try:
                captured_tables(connection, source, alone, settings.prefix)
            except Refused as error:
                stopped[name] = recorded[name].model_copy(update={"stopped": error.problem})
    return stopped


def first_state(source: str, instance: str, slot: str, system: str, start: Lsn) -> StreamState:
    """Return the state of a stream that nothing was read from: every commit from `start` on is still to come."""
    return StreamState(
        source=source,
        instance=instance,
        slot=slot,
        system_identifier=system,
        commit_lsn=Lsn(start - 1),
        ordinal=0,
        confirmed_lsn=start,
        ts_ms=0,
    )
