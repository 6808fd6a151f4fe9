"""The registry's repositories, before and after they have a status, their events in a topic, and a log of writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

import psycopg

from infra.kafka import topics
from infra.schema_registry.topic_registry import open_registry
from schemas.avro import key_schema, value_schema
from schemas.codec.encoder import Encoder
from schemas.events import Column, Op, Origin, Relation, Unchanged
from schemas.positions import Lsn
from schemas.topics import table_topic
from tests.consumers.container_repositories import Feed

_INT8, _TEXT, _TIMESTAMPTZ = 20, 25, 1184

Key = tuple[int, int]
"""top_level_namespace_id and id."""

TABLE = files("infra.demo").joinpath("registry.sql").read_text(encoding="utf-8").partition("CREATE SCHEMA proof")[0]
LOG = """
    CREATE TABLE public.writes (sequence bigint GENERATED ALWAYS AS IDENTITY, id bigint, application text);
    CREATE FUNCTION public.log_write() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.writes (id, application) VALUES (NEW.id, current_setting('application_name'));
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_write AFTER UPDATE ON public.repositories FOR EACH ROW EXECUTE FUNCTION public.log_write();
"""
EXPANDED = """
    ALTER TABLE public.repositories ADD COLUMN migration_status text;
    ALTER TABLE public.repositories ADD CONSTRAINT check_repositories_migration_status_length
        CHECK ((char_length(migration_status) <= 255));
"""

BEFORE = Relation(
    oid=16_501,
    schema="public",
    table="repositories",
    replica_identity="d",
    columns=(
        Column("id", _INT8),
        Column("top_level_namespace_id", _INT8),
        Column("parent_id", _INT8),
        Column("created_at", _TIMESTAMPTZ),
        Column("updated_at", _TIMESTAMPTZ),
        Column("name", _TEXT),
        Column("path", _TEXT),
    ),
    identity_columns=("id", "top_level_namespace_id"),
)
AFTER = replace(BEFORE, columns=(*BEFORE.columns, Column("migration_status", _TEXT)))

_KEY = ("top_level_namespace_id", "id")


class RegistryFeed(Feed):
    """Produces events of repositories, as they are once the table has the column, or as they were `before`."""

    def __post_init__(self) -> None:
        self.topic = table_topic(self.settings.prefix, "registry", self.database, "public", "repositories")
        topics.ensure_topic(self.settings.kafka, self.topic, partitions=self.partitions)
        self.lsn = 1_000
        self._encoders = {relation: self._encoder(relation) for relation in (BEFORE, AFTER)}

    def _encoder(self, relation: Relation) -> Encoder:
        registry = open_registry(self.settings)
        return Encoder(
            relation,
            "registry",
            _KEY,
            origin=Origin(self.database, self.database),
            value_schema_id=registry.register(f"{self.topic}-value", value_schema(relation, "registry")),
            key_schema_id=registry.register(f"{self.topic}-key", key_schema(relation, "registry", _KEY)),
        )

    def event(
        self, key: Key, status: str | Unchanged | None, op: Op = Op.CREATE, *, before: bool = False
    ) -> tuple[bytes, bytes]:
        """Return the record of a row's new state."""
        self.lsn += 8
        encoder = self._encoders[BEFORE if before else AFTER]
        prefix = encoder.event_prefix(op, lsn=Lsn(self.lsn), xid=self.xid, ts_ms=1_700_000_000_000)
        now, path = b"2024-05-06 07:08:09.123456+00", b"group-%d/%d" % key
        row: list[bytes | Unchanged | None] = [b"%d" % key[1], b"%d" % key[0], None, now, None, path, path]
        if not before:
            row.append(status if isinstance(status, Unchanged) else None if status is None else status.encode())
        return encoder.change(prefix, 0, 1_700_000_000_001, row)

    def delete_key(self, key: Key) -> list[tuple[bytes, bytes | None]]:
        """Return the records of a delete: the event and its tombstone."""
        self.lsn += 8
        encoder = self._encoders[AFTER]
        prefix = encoder.event_prefix(Op.DELETE, lsn=Lsn(self.lsn), xid=self.xid, ts_ms=1_700_000_000_000)
        old: list[bytes | Unchanged | None] = [b"%d" % key[1], b"%d" % key[0], *([None] * (len(AFTER.columns) - 2))]
        record = encoder.delete(prefix, 0, 1_700_000_000_001, old)
        return [record, (record[0], None)]

    def snapshot_of(self, rows: Mapping[Key, str | None], *, before: bool = False) -> None:
        """Produce rows as a snapshot would."""
        self.send(self.event(key, status, Op.READ, before=before) for key, status in rows.items())


def insert(connection: psycopg.Connection[Any], keys: Iterable[Key]) -> None:
    """Insert rows like an application that does not know the column."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO repositories (top_level_namespace_id, id, name, path) VALUES (%s, %s, %s, %s)",
            [(*key, f"image-{key[1]}", f"group-{key[0]}/{key[1]}") for key in keys],
        )


def insert_with_status(connection: psycopg.Connection[Any], rows: Mapping[Key, str | None]) -> None:
    """Insert rows like an application that knows the column."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO repositories (top_level_namespace_id, id, name, path, migration_status)"
            " VALUES (%s, %s, %s, %s, %s)",
            [(*key, f"image-{key[1]}", f"group-{key[0]}/{key[1]}", status) for key, status in rows.items()],
        )


def statuses(connection: psycopg.Connection[Any]) -> dict[Key, str | None]:
    """Return the status of every row by its key."""
    found = connection.execute("SELECT top_level_namespace_id, id, migration_status FROM repositories")
    return {(namespace, key): status for namespace, key, status in found}


def writes(connection: psycopg.Connection[Any]) -> int:
    """Return how many writes of headrace there were, by the trigger's log."""
    found = connection.execute("SELECT count(*) FROM writes WHERE application LIKE 'headrace consume%'").fetchone()
    assert found is not None
    return int(found[0])
