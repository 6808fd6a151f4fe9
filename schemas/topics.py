"""The names of Kafka's topics; no two tables ever share one.

`<prefix>.<gitlab schema>.<table>`, with `<schema>-<table>` for a table outside PostgreSQL's schema `public`,
and the database before it for a `gitlab_shared` table, which every database has for itself. Names are escaped
(see `schemas.names`), so that a dot or dash in a topic always is one of these. The dash is no second dot
because Kafka refuses two topics that differ only in `.` and `_`.
"""

from __future__ import annotations

import re
from typing import Final

from schemas.errors import UsageError
from schemas.gitlab_schemas import GITLAB_SHARED
from schemas.names import escape

_MAX_LENGTH: Final = 249
"""Kafka's own limit (org.apache.kafka.common.internals.Topic)."""

_ALLOWED: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*").fullmatch
_RESERVED: Final = ("parked", "positions", "schemas")


def _topic(prefix: str, *parts: str) -> str:
    name = ".".join((prefix, *parts))
    if not _ALLOWED(prefix):
        raise UsageError(
            f"{prefix!r} cannot start a topic's name",
            remedy="set prefix to letters, digits, dots, dashes and underscores",
        )
    if len(name) > _MAX_LENGTH:
        raise UsageError(
            f"the topic {name} has a name of {len(name)} characters, and Kafka allows {_MAX_LENGTH}",
            remedy="shorten prefix in the settings",
        )
    return name


def schema_prefix(prefix: str, gitlab_schema: str) -> str:
    """Return what the topics of a gitlab schema, and no other topics, start with: what an ACL grants.

    Raises UsageError for a gitlab schema whose topics would stand among headrace's own.
    """
    if gitlab_schema in _RESERVED:
        raise UsageError(
            f"a gitlab schema cannot be called {gitlab_schema}", remedy="headrace's own topics have that name"
        )
    return _topic(prefix, escape(gitlab_schema)) + "."


def shared_prefix(prefix: str, database: str) -> str:
    """Return what the topics of one database's `gitlab_shared` tables, and no other topics, start with."""
    return f"{schema_prefix(prefix, GITLAB_SHARED)}{escape(database)}."


def table_topic(prefix: str, gitlab_schema: str, database: str, schema: str, table: str) -> str:
    """Return the topic of a table's events.

    `database` is its name in the settings; `schema` is PostgreSQL's. Raises UsageError when Kafka cannot have
    a topic of that name.
    """
    parts = [escape(table) if schema == "public" else f"{escape(schema)}-{escape(table)}"]
    if gitlab_schema == GITLAB_SHARED:
        parts.insert(0, escape(database))
    return _topic(schema_prefix(prefix, gitlab_schema)[:-1], *parts)


def positions_topic(prefix: str) -> str:
    """Return the topic that says where every source stands."""
    return _topic(prefix, "positions")


def schemas_topic(prefix: str) -> str:
    """Return the topic of the embedded schema registry."""
    return _topic(prefix, "schemas")


def parked_topic(prefix: str, migration: str) -> str:
    """Return the topic of the events that a migration could not apply."""
    return _topic(prefix, "parked", escape(migration))


def group_name(prefix: str, migration: str) -> str:
    """Return the name of a migration's consumer group."""
    return f"{prefix}.{migration}"
