"""Dry run of a migration: decides on every event, writes nothing and joins no consumer group."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition

from consumers.contract.migration import Migration
from consumers.delivery.topics import schemas_of, source_topics
from consumers.ledger.progress import Place, member_name
from consumers.planning.planner import Planner
from infra.kafka import clients, topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.positions import Offset

_POLL_SECONDS: Final = 0.1


@dataclass(slots=True)
class DryRun:
    """The counts of a dry run; `changes` counts the events whose rows would be written if they are unchanged since."""

    events: int = 0
    changes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)


def dry_run(
    settings: Settings,
    migration: Migration,
    database: str,
    *,
    stopping: threading.Event,
    report: Callable[[DryRun, int], None] | None = None,
) -> DryRun:
    """Read every topic of the migration from its beginning to its current end, and count the decisions.

    `report` is called with the counts and the total number of offsets. Raises UsageError if a topic does not exist.
    """
    names = source_topics(settings, migration, database)
    ends = {
        Place(topic, partition): Offset(end)
        for topic in names
        for partition, end in topics.end_offsets(settings.kafka, topic).items()
    }
    for topic in set(names) - {place.topic for place in ends}:
        raise UsageError(f"topic {topic} does not exist yet", remedy="start its producer first")
    outcome = DryRun()
    planner = Planner(migration, schemas_of(open_registry(settings)), database)
    with clients.reading(
        settings.kafka,
        client_id=member_name(),
        enable_partition_eof=True,
    ) as client:
        clients.assign(client, [TopicPartition(*place, OFFSET_BEGINNING) for place, end in ends.items() if end > 0])
        positions = {place: Offset(0) for place, end in ends.items() if end > 0}
        left = set(positions)
        while left and not stopping.is_set():
            records = client.consume(settings.migration(migration.name).batch_size, timeout=_POLL_SECONDS)
            for record in records:
                error = record.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise clients.translate(error, settings.kafka)
            for sub_batch in planner.plan(records, positions, limit=len(records) + 1):
                for advance in sub_batch.advances:
                    positions[advance.place] = advance.next_offset
                    outcome.events += advance.events
                    outcome.changes += advance.changes
                    outcome.skipped.update(advance.skipped)
                outcome.dead_letters.update(letter.reason for letter in sub_batch.dead_letters)
            left = {place for place in left if positions[place] < ends[place]}
            if report is not None:
                report(outcome, sum(ends.values()))
    return outcome
