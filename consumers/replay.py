"""A new run of a migration from the beginning of its topics. The ledger and Kafka's offsets move together."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import Connection

from consumers.group import group_name, members, move_offsets, topic_ids
from consumers.ledger import Place
from consumers.migration import Migration
from consumers.runtime import source_topics
from infra import postgres, topics
from infra.control import ensure_control_schema
from infra.settings import Settings
from schemas.errors import Refused
from schemas.positions import Offset


class MembersAlive(Refused):
    """Stop them first; one that was killed is dropped from the group after 10 seconds."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A run that begins: its number, and the offset each partition starts at."""

    migration: str
    run: int
    starts: dict[Place, Offset]


def replay(settings: Settings, migration: type[Migration], database: str, *, reason: str = "replay") -> Replay:
    """Begin a new run of `migration` from the beginning; the next member to start carries it out.

    A second call begins yet another run. Raises MembersAlive, naming them, while members are in the group;
    nothing was changed then. A failure half-way leaves the old run as it was.
    """
    group = group_name(settings.prefix, migration.name)
    if alive := members(settings.kafka, group):
        raise MembersAlive(f"{migration.name} has members alive: {', '.join(alive)}")
    names = source_topics(settings, migration, database)
    starts = {
        Place(topic, partition): Offset(0) for topic in names for partition in topics.end_offsets(settings.kafka, topic)
    }
    ids = topic_ids(settings.kafka, [place.topic for place in starts]) if starts else {}
    section = settings.database(database)
    dsn = section.dsn.get_secret_value()
    with postgres.translated(dsn), postgres.connect(dsn, name=f"replay {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas)
        with connection.transaction():
            run = _next_run(connection, migration, reason)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO headrace.progress (migration, run, topic, partition, topic_id, next_offset)"
                    " VALUES (%s, %s, %s, %s, %s, %s)",
                    [
                        (migration.name, run, place.topic, place.partition, ids[place.topic], offset)
                        for place, offset in starts.items()
                    ],
                )
            # Kafka refuses this when a member joined meanwhile; then the run is rolled back too.
            move_offsets(settings.kafka, group, starts)
    return Replay(migration.name, run, starts)


def _next_run(connection: Connection, migration: type[Migration], reason: str) -> int:
    # The row is locked: a transaction of a member still under way ends first, and its next one sees the new run.
    row = connection.execute(
        "INSERT INTO headrace.migrations (name, gitlab_schema, run_reason) VALUES (%s, %s, %s)"
        " ON CONFLICT (name) DO UPDATE SET run = headrace.migrations.run + 1, run_reason = excluded.run_reason,"
        " started_at = now(), completed_at = NULL, failed = NULL"
        " RETURNING run",
        (migration.name, migration.gitlab_schema, reason),
    ).fetchone()
    assert row is not None
    return int(row[0])
