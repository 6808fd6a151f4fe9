"""Names Kafka's topics; no two tables share one.

`<prefix>.<gitlab schema>.<table>`, with `<schema>-<table>` for a table outside PostgreSQL's schema `public`, and the
database before it for a table that every database has separately (`schemas.gitlab_schemas.PER_DATABASE`). Names are
escaped (see `schemas.names`), so that a dot or dash in a topic is always a separator. The dash is not a dot because
Kafka refuses two topics that differ only in `.` and `_`.
"""

from __future__ import annotations

import re
from typing import Final

from schemas.errors import UsageError
from schemas.gitlab_schemas import PER_DATABASE
from schemas.names import escape

_MAX_LENGTH: Final = 249
"""Kafka's limit (org.apache.kafka.common.internals.Topic)."""

_ALLOWED: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*").fullmatch
_RESERVED: Final = ("dead_letters", "positions", "schemas")


def _topic(prefix: str, *parts: str) -> str:
    name = ".".join((prefix, *parts))
    if not _ALLOWED(prefix):
        raise UsageError(
            f"{prefix!r} cannot be the prefix of a topic",
            remedy="set prefix to letters, digits, dots, dashes and underscores",
        )
    if len(name) > _MAX_LENGTH:
        raise UsageError(
            f"the name of topic {name} has {len(name)} characters, and Kafka allows {_MAX_LENGTH}",
            remedy="shorten prefix in the settings",
        )
    return name


def schema_prefix(prefix: str, gitlab_schema: str) -> str:
    """Return the prefix of exactly the topics of a gitlab schema, for ACLs.

    Raises UsageError for a gitlab schema whose topics would collide with headrace's own.
    """
    if gitlab_schema in _RESERVED:
        raise UsageError(
            f"a gitlab schema cannot be named {gitlab_schema}",
            remedy="choose another name: headrace's own topics use it",
        )
    return _topic(prefix, escape(gitlab_schema)) + "."


def source_prefix(prefix: str, gitlab_schema: str, database: str) -> str:
    """Return the prefix of the topics of a gitlab schema that `database` writes, for ACLs.

    Exactly its own where every database has topics of its own; others move to the next owner. Raises UsageError as
    `schema_prefix` does.
    """
    own = schema_prefix(prefix, gitlab_schema)
    return f"{own}{escape(database)}." if gitlab_schema in PER_DATABASE else own


def table_topic(prefix: str, gitlab_schema: str, database: str, schema: str, table: str) -> str:
    """Return the topic of a table's events.

    `database` is its name in the settings; `schema` is PostgreSQL's. Raises UsageError if Kafka does not allow the
    name.
    """
    parts = [escape(table) if schema == "public" else f"{escape(schema)}-{escape(table)}"]
    if gitlab_schema in PER_DATABASE:
        parts.insert(0, escape(database))
    return _topic(schema_prefix(prefix, gitlab_schema)[:-1], *parts)


def positions_topic(prefix: str) -> str:
    """Return the topic with the state of every source."""
    return _topic(prefix, "positions")


def schemas_topic(prefix: str) -> str:
    """Return the topic of the embedded schema registry."""
    return _topic(prefix, "schemas")


def dead_letters_topic(prefix: str, migration: str) -> str:
    """Return the topic of the events that a migration could not apply."""
    return _topic(prefix, "dead_letters", escape(migration))


def group_name(prefix: str, migration: str) -> str:
    """Return the name of a migration's consumer group."""
    return f"{prefix}.{migration}"
