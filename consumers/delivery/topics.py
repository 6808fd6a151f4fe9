"""The source topics of a migration, and access to the schemas of their records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from consumers.contract.migration import Migration
from infra.schema_registry.topic_registry import Registry, UnknownSchema
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import BrokerUnavailable, Interrupted, Malformed
from schemas.topics import table_topic

WALKED: Final = "public.storage_walk"
"""The pseudo-table of events from a walk of a git storage; it is in no database."""


class UnknownSchemaId(Malformed):
    """Check that producer and consumer use the same registry, then `headrace dead-letters retry`."""


Schemas = Callable[[int], dict[str, Any]]
"""Schema id → schema; raises UnknownSchemaId if it is unknown."""


def source_topics(settings: Settings, migration: Migration | type[Migration], database: str) -> list[str]:
    """Return the topics that the migration reads."""
    topics = []
    for table in migration.tables:
        schema, _, name = table.partition(".")
        topics.append(table_topic(settings.prefix, migration.gitlab_schema, database, schema, name))
    return topics


def not_captured(settings: Settings, migration: Migration, database: str) -> list[str]:
    """Return the tables that the migration reads but that these settings do not capture."""
    section = settings.database(database)
    tables = [table for table in migration.tables if table != WALKED]
    return [table for table in tables if section.tables and not section.captures(table)]


def schemas_of(
    registry: Registry, stopping: threading.Event | None = None, *, again_seconds: float = 0.5
) -> Callable[[int], dict[str, Any]]:
    """Return a schema lookup for the planner; an unknown id is an error of the event.

    With `stopping`, it asks every `again_seconds` while Kafka does not answer, and raises Interrupted when stopped.
    """
    unknown: dict[int, float] = {}

    def asked(schema_id: int) -> dict[str, Any]:
        while True:
            try:
                return registry.schema(schema_id)
            except BrokerUnavailable as error:
                if stopping is None:
                    raise
                log.get().warning("waiting for Kafka", reason=str(error))
                if stopping.wait(again_seconds):
                    raise Interrupted("stopped while waiting for Kafka") from error

    def schema(schema_id: int) -> dict[str, Any]:
        # Looking up an unknown id reads the registry, which must not happen for each event of a topic full of them.
        if unknown.get(schema_id, 0.0) > time.monotonic():
            raise UnknownSchemaId(f"schema id {schema_id} is not in the registry")
        try:
            return asked(schema_id)
        except UnknownSchema as error:
            unknown[schema_id] = time.monotonic() + 60.0
            raise UnknownSchemaId(f"schema id {schema_id} is not in the registry") from error

    return schema
