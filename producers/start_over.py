"""Forgetting a source, so that its next start reads everything anew: the way out of a gap."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from infra import kafka, log
from infra.control import owners
from infra.positions import Positions, SourceState, record_key
from infra.postgres import connect, translated
from infra.settings import Settings
from infra.topics import STATE, delete_topics, ensure_topic
from producers import slots, startup
from producers.ownership import owned
from producers.relay import Relay
from producers.tables import captured_tables
from schemas.errors import Refused
from schemas.topics import positions_topic

_LET_GO_SECONDS: Final = 3.0


def start_over(settings: Settings, source: str) -> None:
    """Drop the source's slot, delete its topics, and remove its positions, in this order.

    Interrupted anywhere, running it again completes it. Raises Refused while a producer reads the slot. Ledgers of
    migrations then stand beyond the new topics' ends, which their consumers refuse until they are replayed.
    """
    kafka.ensure_reachable(settings.kafka)
    database = settings.database(source)
    dsn = database.dsn.get_secret_value()
    name = startup.slot_name(settings, source, database)
    with connect(dsn, name=f"start-over {source}") as connection, translated(dsn):
        _drop(connection, name)
        tables = captured_tables(connection, source, database, settings.prefix)
        # What another database owns now is that one's to publish, and in its topics.
        elsewhere = {table.name for table in tables if not owned(table, source, owners(connection))}
    topic = positions_topic(settings.prefix)
    ensure_topic(settings.kafka, topic, partitions=1, config=STATE)
    state = Positions(settings.prefix, settings.kafka).sources().get(source, SourceState())
    captured = {table.topic for table in tables if table.name not in elsewhere}
    captured |= {each.topic for each in state.snapshots.values() if each.table not in elsewhere}
    delete_topics(settings.kafka, sorted(captured))
    relay = Relay(settings.kafka, f"{settings.prefix}.{source}", topic)
    try:
        relay.record([(record_key(source), None), *((record_key(source, table), None) for table in state.snapshots)])
        relay.commit()
    finally:
        relay.close()
    log.get(**{log.SOURCE: source}).info("forgotten", slot=name, topics=len(captured))


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
