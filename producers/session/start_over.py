"""Starts a source over: its next start empties its topics by a truncate and re-snapshots every table.

This recovers from a gap. The topics are kept, so that records before the truncate keep their offsets and the ledgers
of migrations stay valid. Topics are deleted only if the new stream's positions would come before the old ones: the
database is a different one or was restored to an earlier state, or another database was given the tables, published
to these topics, and is lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg
from pydantic import BaseModel

from infra.kafka import clients
from infra.kafka.topics import STATE, delete_topics, ensure_topic
from infra.postgres.connect import is_standby, session
from infra.postgres.control import Owner, owners
from infra.postgres.moments import current_moment
from infra.service import log
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from infra.state.positions import (
    HandoverState,
    Positions,
    SnapshotState,
    SourceState,
    handover_key,
    record_key,
    stray_key,
)
from producers.publish.kafka_transaction import Relay
from producers.session.handover import owned
from producers.source import slots
from producers.source.tables import CapturedTable, captured_tables
from schemas.errors import Refused
from schemas.gitlab_schemas import PER_DATABASE
from schemas.positions import Lsn
from schemas.topics import positions_topic

_LET_GO_SECONDS: Final = 3.0


def start_over(settings: Settings, source: str, actor: Actor | None = None) -> None:
    """Drop the source's slot, then record that its tables are to be re-snapshotted from scratch.

    Idempotent: if interrupted, run it again. Raises Refused while a producer reads the slot. If topics have to be
    deleted, ledgers are past the new topics' ends, and consumers refuse to start until the migration is replayed.
    """
    clients.ensure_reachable(settings.kafka)
    database = settings.database(source)
    name = slots.slot_name(settings, source, database)
    with session(database, name=f"start-over {source}", reading=True) as connection:
        _drop(connection, name)
        if not is_standby(connection):
            # Not before: it may be refused. If it ends here, a start is refused until it is run again, and recorded.
            record_action(connection, OperatorAction.START_OVER, [source], actor, slot=name)
        tables = captured_tables(connection, source, database, settings.prefix)
        system, lsn = slots.system_identifier(connection), current_moment(connection).lsn
        # Tables that another database owns now are published by that one.
        owned_by = owners(connection)
        elsewhere = {table.name for table in tables if not owned(table, source, owned_by)}
    topic = positions_topic(settings.prefix)
    ensure_topic(settings.kafka, topic, partitions=1, config=STATE)
    # Before the state is read: it ends the last producer's transaction, which Kafka may not show yet.
    relay = Relay(settings.kafka, f"{settings.prefix}.{source}", topic)
    try:
        sources = Positions(settings.prefix, settings.kafka).sources()
        state = sources.get(source, SourceState())
        others = [each for name, each in sources.items() if name != source]
        ahead = {each for other in others for each in _topics_ahead(other, system, lsn)}
        here = {table.name: table for table in tables if table.name not in elsewhere}
        continues = _is_before(state, system, lsn)
        from_scratch: dict[str, SnapshotState | None] = {
            name: SnapshotState(source=source, table=name, topic=table.topic, from_scratch=True)
            for name, table in here.items()
            if table.topic not in ahead
            and (continues or (name in state.snapshots and state.snapshots[name].from_scratch))
        }
        captured = {table.topic for name, table in here.items() if name not in from_scratch}
        if not continues:
            captured |= {
                each.topic for name, each in state.snapshots.items() if name not in elsewhere | from_scratch.keys()
            }
        delete_topics(settings.kafka, sorted(captured))
        forgotten = dict.fromkeys(state.snapshots)
        states = {**forgotten, **from_scratch}
        relay.record([(record_key(source), None), *((record_key(source, name), each) for name, each in states.items())])
        # Changes between the old slot and the new one are in neither stream.
        relay.record([(stray_key(source, table), None) for table in state.strays])
        relay.commit()
    finally:
        relay.close()
    _seal(settings, source, list(here.values()), owned_by)
    log.get(**{log.SOURCE: source}).info(
        "source reset", slot=name, from_scratch=len(from_scratch), deleted=len(captured)
    )


def _seal(settings: Settings, source: str, tables: Sequence[CapturedTable], owners: Mapping[str, Owner]) -> None:
    """Record the end of every other source that published what `source` owns now.

    For a source that is lost before it has published everything. To be called after the tables' topics, which lack
    changes, were deleted. A producer of such a source that still runs is fenced, and no longer publishes these tables.
    """
    for name, state in Positions(settings.prefix, settings.kafka).sources().items():
        records = [] if name == source else list(_sealing(name, state, source, tables, owners))
        if records:
            relay = Relay(settings.kafka, f"{settings.prefix}.{name}", positions_topic(settings.prefix))
            try:
                relay.record(records)
                relay.commit()
            finally:
                relay.close()


def _sealing(
    name: str, state: SourceState, source: str, tables: Iterable[CapturedTable], owners: Mapping[str, Owner]
) -> Iterator[tuple[bytes, BaseModel | None]]:
    by_topic = {table.topic: table.gitlab_schema for table in tables if table.gitlab_schema not in PER_DATABASE}
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


def _is_before(state: SourceState, system: str, lsn: Lsn) -> bool:
    """Whether everything a source published comes before `lsn`, in one order of positions."""
    return state.stream is not None and state.stream.system_identifier == system and state.stream.commit_lsn < lsn


def _topics_ahead(state: SourceState, system: str, lsn: Lsn) -> Iterator[str]:
    """Yield the topics to which another source may have published positions from `lsn` on."""
    if not _is_before(state, system, lsn):
        yield from (each.topic for each in state.snapshots.values())


def _drop(connection: psycopg.Connection[Any], slot: str) -> None:
    """Drop the slot; the server needs a moment to notice that a producer has just stopped."""
    deadline = time.monotonic() + _LET_GO_SECONDS
    while True:
        try:
            slots.drop(connection, slot)
            return
        except Refused:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
