"""Lists what a migration's consumers need: ACLs in Kafka, and privileges in the database that they write.

Every resource is listed by name: a consumer of one gitlab schema has no access to another's records, dead letters or
group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from consumers.contract.migration import Migration
from consumers.delivery.topics import WALKED, source_topics
from consumers.operations import catalog
from infra.kafka import clients
from infra.postgres.control import HISTORY, OWNERSHIP, tables_made
from infra.rights.acls import Acl, Kind, Operation
from infra.rights.privileges import HEADRACE, TablePrivileges
from infra.rights.programs import Program
from infra.settings.model import Settings, switches
from schemas.topics import dead_letters_topic, group_name, positions_topic, schema_prefix, schemas_topic

_READING: Final = (Operation.READ, Operation.DESCRIBE)
_DEAD_LETTERS: Final = (Operation.READ, Operation.WRITE, Operation.CREATE, Operation.DESCRIBE)
_LEDGER: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")

OWN_TABLES: Final = (
    TablePrivileges(HEADRACE, "database", ("SELECT",)),
    TablePrivileges(*OWNERSHIP, ("SELECT",)),
    TablePrivileges(HEADRACE, "migrations", ("SELECT", "INSERT", "UPDATE")),
    TablePrivileges(HEADRACE, "progress", ("SELECT", "INSERT", "UPDATE")),
    TablePrivileges(HEADRACE, "selections", _LEDGER),
    TablePrivileges(HEADRACE, "dead_letters", _LEDGER),
    TablePrivileges(HEADRACE, "throttles", _LEDGER),
    TablePrivileges(HEADRACE, "failures", _LEDGER),
    TablePrivileges(HEADRACE, "samples", ("SELECT", "INSERT", "DELETE")),
    TablePrivileges(HEADRACE, "throttle_periods", ("SELECT", "INSERT", "DELETE")),
    TablePrivileges(*HISTORY, ("SELECT", "INSERT")),
    TablePrivileges(HEADRACE, "paces", _LEDGER),
)
"""headrace's own tables that every consumer reads and writes."""


def programs(settings: Settings) -> Iterator[Program]:
    """Yield the consumers of each migration that is meant to run, once per database that they may write.

    It is meant to run if the settings have a section for it, or name all tables and storages that it reads.
    """
    walks = {WALKED} if settings.virtual_storages else set()
    for name, kind in sorted(catalog.migrations(settings).items()):
        configured = name in settings.migrations or name in switches().values()
        for database in catalog.listing(settings, kind.gitlab_schema):
            read = {*settings.databases[database].tables, *walks}
            if (configured or read.issuperset(kind.tables)) and settings.migration(name).enabled:
                yield Program(
                    name, database, tuple(acls(settings, kind)), tuple(privileges(kind)), kind.own_tables.strip()
                )


def acls(settings: Settings, kind: type[Migration]) -> Iterator[Acl]:
    """Yield the ACLs that the migration's consumers and its operator's commands need in Kafka."""
    principal = settings.kafka.consumer_principal
    principal = principal.replace("{gitlab_schema}", kind.gitlab_schema).replace("{migration}", kind.name)
    own = schema_prefix(settings.prefix, kind.gitlab_schema)
    yield Acl(principal, Kind.TOPIC, own, _READING, prefixed=True)
    yield Acl(principal, Kind.TOPIC, positions_topic(settings.prefix), _READING)
    if not settings.registry.url:
        yield Acl(principal, Kind.TOPIC, schemas_topic(settings.prefix), _READING)
    yield Acl(principal, Kind.TOPIC, dead_letters_topic(settings.prefix, kind.name), _DEAD_LETTERS)
    yield Acl(principal, Kind.GROUP, group_name(settings.prefix, kind.name), _READING)
    yield Acl(principal, Kind.GROUP, clients.READERS, (Operation.DESCRIBE,))


def needed(settings: Settings, kind: type[Migration], database: str) -> tuple[list[Acl], list[str]]:
    """Return the ACLs that the migration's consumers need in Kafka, and the topics that they read (`kafka_rights`)."""
    return list(acls(settings, kind)), source_topics(settings, kind, database)


def privileges(kind: type[Migration]) -> Iterator[TablePrivileges]:
    """Yield the privileges that the migration's consumers need in the database that they write."""
    yield from OWN_TABLES
    for table in tables_made(kind.own_tables):
        yield TablePrivileges(HEADRACE, table, _LEDGER)
    written = kind.writes or kind.tables
    for name in dict.fromkeys((*kind.tables, *kind.writes, *kind.privileges)):
        if name != WALKED:
            schema, _, table = name.partition(".")
            usual = ("SELECT", "UPDATE") if name in written else ("SELECT",)
            yield TablePrivileges(schema, table, kind.privileges.get(name, usual))
