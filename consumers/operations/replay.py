"""Starts a new run of a migration over its topics; moves the ledger and Kafka's offsets together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from psycopg import Connection
from psycopg.types.json import Jsonb

from consumers.contract.declarations import declared
from consumers.contract.migration import Migration
from consumers.delivery.topic_identity import topic_ids
from consumers.delivery.topics import schemas_of, source_topics
from consumers.ledger.progress import Place
from consumers.ledger.versions import Declared
from consumers.operations.group_admin import MembersAlive, members, move_offsets
from consumers.operations.start_offsets import Beginning, Start, first_record, start_offsets
from consumers.planning.key_selection import named
from consumers.planning.key_values import key_kinds
from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, migration_key
from infra.postgres.control import ensure_control_schema
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Offset
from schemas.topics import group_name
from schemas.wire import split_wire


@dataclass(frozen=True)
class Replay:
    """A new run: its number, and the offset that each partition starts at."""

    migration: str
    run: int
    starts: dict[Place, Offset]
    selection: dict[str, list[str]] = field(default_factory=dict)


def replay(
    settings: Settings,
    migration: type[Migration],
    database: str,
    *,
    start: Start = Beginning(),  # noqa: B008 - frozen
    selection: Mapping[str, Sequence[str]] | None = None,
    reason: str = "replay",
    actor: Actor | None = None,
) -> Replay:
    """Start a new run of `migration` at `start`; the next consumer to start applies it.

    With `selection`, as key_selection.parse_selection returns it, only events with those keys are decided on. A second
    call starts yet another run. Raises MembersAlive, which names them, while consumers are in the group, and UsageError
    if the keys do not have the selection's columns; nothing was changed then. A failure leaves the old run as it was.
    """
    group = group_name(settings.prefix, migration.name)
    if alive := members(settings.kafka, group):
        raise MembersAlive(f"{migration.name} has running consumers: {', '.join(alive)}")
    now = declared(migration.configure(settings.migration(migration.name)))
    names = source_topics(settings, migration, database)
    limits = _checked(settings, names, selection) if selection else {}
    starts = start_offsets(settings.kafka, names, start)
    ids = topic_ids(settings.kafka, [place.topic for place in starts]) if starts else {}
    section = settings.database(database)
    with connect.session(section, name=f"replay {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        with connection.transaction():
            run = _next_run(connection, migration, reason, now)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO headrace.progress (migration, run, topic, partition, topic_id, next_offset)"
                    " VALUES (%s, %s, %s, %s, %s, %s)",
                    [
                        (migration.name, run, place.topic, place.partition, ids[place.topic], offset)
                        for place, offset in starts.items()
                    ],
                )
            if limits:
                connection.execute(
                    "INSERT INTO headrace.selections (migration, run, selection) VALUES (%s, %s, %s)",
                    (migration.name, run, Jsonb(limits)),
                )
            # What is selected is in headrace.selections, and may be long.
            values = {column: len(of_column) for column, of_column in limits.items()}
            record_action(
                connection, OperatorAction.REPLAY, [migration.name], actor, run=run, start=str(start), selected=values
            )
            # Kafka refuses this if a consumer joined meanwhile; then the run is rolled back too.
            move_offsets(settings.kafka, group, starts)
    return Replay(migration.name, run, starts, limits)


def _checked(settings: Settings, names: Sequence[str], selection: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the selection with its columns named, checked against the topics' keys."""
    schema = schemas_of(open_registry(settings))
    for name in names:
        if (record := first_record(settings.kafka, name)) is not None:
            key, value = record
            kinds = key_kinds(schema(split_wire(key)[0]), None if value is None else schema(split_wire(value)[0]))
            return named(selection, kinds)
    raise UsageError("the topics have no events yet, so there are no keys to select", remedy="start the producer first")


def _next_run(connection: Connection, migration: type[Migration], reason: str, now: Declared) -> int:
    # A consumer's transaction in progress ends first, and its next one sees the new run.
    exclude(connection, [migration_key(migration.name)])
    row = connection.execute(
        "INSERT INTO headrace.migrations (name, gitlab_schema, run_reason, declared) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (name) DO UPDATE SET run = headrace.migrations.run + 1, run_reason = excluded.run_reason,"
        " gitlab_schema = excluded.gitlab_schema,"
        " declared = excluded.declared,"
        " started_at = now(), completed_at = NULL, failed = NULL"
        " RETURNING run",
        (migration.name, migration.gitlab_schema, reason, now.document()),
    ).fetchone()
    assert row is not None
    return int(row[0])
