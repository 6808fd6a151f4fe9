"""The ACLs in Kafka and the database privileges that a source's producer needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.postgres.control import HEARTBEAT, HISTORY, OWNERSHIP, REQUESTS
from infra.rights.acls import Acl, Kind, Operation
from infra.rights.privileges import HEADRACE, TablePrivileges
from infra.rights.programs import Program
from infra.settings.model import DatabaseSettings, Settings
from producers.source.tables import captured_tables
from schemas.errors import Refused
from schemas.gitlab_schemas import PRAEFECT
from schemas.topics import positions_topic, schema_prefix, schemas_topic, source_prefix

_TOPICS: Final = (
    Operation.READ,
    Operation.WRITE,
    Operation.CREATE,
    Operation.DESCRIBE,
    Operation.DESCRIBE_CONFIGS,
)
_TRANSACTIONS: Final = (Operation.WRITE, Operation.DESCRIBE)

OWN_TABLES: Final = (
    TablePrivileges(HEADRACE, "database", ("SELECT",)),
    TablePrivileges(*OWNERSHIP, ("SELECT",)),
    TablePrivileges(*HEARTBEAT, ("SELECT", "INSERT", "UPDATE")),
    # A role that may insert here can have a topic emptied.
    TablePrivileges(*REQUESTS, ("SELECT", "INSERT", "DELETE")),
    TablePrivileges(*HISTORY, ("SELECT", "INSERT")),
)
"""headrace's own tables that a producer and snapshot requests read and write."""


def needed(connection: psycopg.Connection[Any], settings: Settings, source: str) -> tuple[list[Acl], list[str]]:
    """Return the ACLs that the producer of a database needs, and the topics that it writes (`kafka_rights`)."""
    try:
        tables = captured_tables(connection, source, settings.database(source), settings.prefix)
    except Refused:
        tables = ()  # preflight reports it
    return list(acls(settings, source)), [table.topic for table in tables]


_PATTERN: Final = frozenset("*?[")


def programs(settings: Settings) -> Iterator[Program]:
    """Yield the producer of each database, and of each virtual storage."""
    for name, database in settings.databases.items():
        yield Program(name, name, tuple(acls(settings, name)), tuple(privileges(database)), replicates=True)
    for name in settings.virtual_storages:
        yield Program(name, None, tuple(acls(settings, name)))


def named_tables(database: DatabaseSettings) -> list[str]:
    """Return the captured tables named in the settings; only the database can expand patterns."""
    return sorted(table for table in set(database.tables) if not _PATTERN & set(table))


def privileges(database: DatabaseSettings) -> Iterator[TablePrivileges]:
    """Yield the privileges that a database's producer needs there."""
    yield from OWN_TABLES
    for name in named_tables(database):
        schema, _, table = name.partition(".")
        yield TablePrivileges(schema, table, ("SELECT",))


def acls(settings: Settings, source: str) -> Iterator[Acl]:
    """Yield the ACLs that the producer of a database, or the walks of a virtual storage, need."""
    principal = settings.kafka.producer_principal.replace("{source}", source)
    if source in settings.databases:
        for label in settings.databases[source].gitlab_schemas:
            prefix = source_prefix(settings.prefix, label, source)
            yield Acl(principal, Kind.TOPIC, prefix, _TOPICS, prefixed=True)
    else:
        yield Acl(principal, Kind.TOPIC, schema_prefix(settings.prefix, PRAEFECT), _TOPICS, prefixed=True)
    yield Acl(principal, Kind.TOPIC, positions_topic(settings.prefix), _TOPICS)
    if not settings.registry.url:
        yield Acl(principal, Kind.TOPIC, schemas_topic(settings.prefix), _TOPICS)
    yield Acl(principal, Kind.GROUP, clients.READERS, (Operation.DESCRIBE,))
    # All of them: the new owner of a gitlab schema fences the old owner's producer.
    yield Acl(principal, Kind.TRANSACTIONAL_ID, f"{settings.prefix}.", _TRANSACTIONS, prefixed=True)
