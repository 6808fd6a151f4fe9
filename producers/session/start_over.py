"""Starting a source over: its next start empties its topics by a truncate and reads everything anew.

It is the way out of a gap, and the topics stay, so that what stands in them in front of the truncate keeps its offsets
and the ledgers of migrations stay right. Only where the new stream's positions would be behind the old ones, since the
database is another or was set back, or since another database published to them that was given the tables, went on
and is lost, are the topics deleted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.kafka.topics import STATE, delete_topics, ensure_topic
from infra.postgres.connect import connect, translated
from infra.postgres.control import owners
from infra.service import log
from infra.settings.model import Settings
from infra.state.positions import Positions, SnapshotState, SourceState, record_key, stray_key
from producers.publish.kafka_transaction import Relay
from producers.session.handover import owned, seal
from producers.source import slots
from producers.source.tables import captured_tables
from producers.source.transactions import current_snapshot
from schemas.errors import Refused
from schemas.positions import Lsn
from schemas.topics import positions_topic

_LET_GO_SECONDS: Final = 3.0


def start_over(settings: Settings, source: str) -> None:
    """Drop the source's slot, then record that its tables are to be read anew.

    Interrupted anywhere, running it again completes it. Raises Refused while a producer reads the slot. Where topics
    have to be deleted, ledgers stand beyond the new topics' ends, which consumers refuse until they are replayed.
    """
    clients.ensure_reachable(settings.kafka)
    database = settings.database(source)
    dsn = database.dsn.get_secret_value()
    name = slots.slot_name(settings, source, database)
    with connect(dsn, name=f"start-over {source}", reading=True) as connection, translated(dsn):
        _drop(connection, name)
        tables = captured_tables(connection, source, database, settings.prefix)
        system, lsn = slots.system_identifier(connection), current_snapshot(connection)[1]
        # What another database owns now is that one's to publish, and in its topics.
        owned_by = owners(connection)
        elsewhere = {table.name for table in tables if not owned(table, source, owned_by)}
    topic = positions_topic(settings.prefix)
    ensure_topic(settings.kafka, topic, partitions=1, config=STATE)
    sources = Positions(settings.prefix, settings.kafka).sources()
    state = sources.get(source, SourceState())
    others = [each for name, each in sources.items() if name != source]
    ahead = {each for other in others for each in _topics_ahead(other, system, lsn)}
    here = {table.name: table for table in tables if table.name not in elsewhere}
    goes_on = _is_before(state, system, lsn)
    anew: dict[str, SnapshotState | None] = {
        name: SnapshotState(source=source, table=name, topic=table.topic, anew=True)
        for name, table in here.items()
        if table.topic not in ahead and (goes_on or (name in state.snapshots and state.snapshots[name].anew))
    }
    captured = {table.topic for name, table in here.items() if name not in anew}
    if not goes_on:
        captured |= {each.topic for name, each in state.snapshots.items() if name not in elsewhere | anew.keys()}
    delete_topics(settings.kafka, sorted(captured))
    forgotten = dict.fromkeys(state.snapshots)
    relay = Relay(settings.kafka, f"{settings.prefix}.{source}", topic)
    try:
        states = {**forgotten, **anew}
        relay.record([(record_key(source), None), *((record_key(source, name), each) for name, each in states.items())])
        # What was written between the old slot and the new one is in neither's stream.
        relay.record([(stray_key(source, table), None) for table in state.strays])
        relay.commit()
    finally:
        relay.close()
    seal(settings, source, list(here.values()), owned_by)
    log.get(**{log.SOURCE: source}).info("forgotten", slot=name, anew=len(anew), deleted=len(captured))


def _is_before(state: SourceState, system: str, lsn: Lsn) -> bool:
    """Whether all that a source published is behind what comes from `lsn` on, in one order of positions."""
    return state.stream is not None and state.stream.system_identifier == system and state.stream.commit_lsn < lsn


def _topics_ahead(state: SourceState, system: str, lsn: Lsn) -> Iterator[str]:
    """Yield the topics to which another source may have published what is not behind `lsn`."""
    if not _is_before(state, system, lsn):
        yield from (each.topic for each in state.snapshots.values())


def _drop(connection: psycopg.Connection[Any], slot: str) -> None:
    """Drop the slot; the server needs a moment to notice that a producer which was just stopped is gone."""
    deadline = time.monotonic() + _LET_GO_SECONDS
    while True:
        try:
            slots.drop(connection, slot)
            return
        except Refused:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
