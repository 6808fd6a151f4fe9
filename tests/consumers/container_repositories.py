"""container_repositories as GitLab has it, its events in a topic, and a log of every write to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Producer

from consumers.testing.settling import until_shown
from infra.kafka import clients, topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.avro import TRUNCATE_KEY, key_schema, value_schema
from schemas.codec.encoder import Encoder
from schemas.events import Column, Op, Origin, Relation, Unchanged
from schemas.positions import Lsn
from schemas.topics import table_topic
from schemas.wire import wire_header

_INT2, _INT4, _INT8, _TEXT, _TIMESTAMPTZ = 21, 23, 20, 25, 1184

RELATION = Relation(
    oid=16_500,
    schema="public",
    table="container_repositories",
    replica_identity="d",
    columns=(
        Column("id", _INT8),
        Column("project_id", _INT8),
        Column("name", _TEXT),
        Column("status", _INT2),
        Column("created_at", _TIMESTAMPTZ),
        Column("updated_at", _TIMESTAMPTZ),
        Column("migration_state", _TEXT),
        Column("migration_skipped_reason", _INT2),
        Column("migration_pre_import_started_at", _TIMESTAMPTZ),
        Column("migration_skipped_at", _TIMESTAMPTZ),
        Column("migration_retries_count", _INT4),
        Column("migration_aborted_in_state", _TEXT),
    ),
    identity_columns=("id",),
)

TABLE = """
    CREATE TABLE public.container_repositories (
        id bigint PRIMARY KEY,
        project_id bigint NOT NULL,
        name text NOT NULL,
        status smallint,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        migration_state text NOT NULL DEFAULT 'default',
        migration_skipped_reason smallint,
        migration_pre_import_started_at timestamptz,
        migration_pre_import_done_at timestamptz,
        migration_import_started_at timestamptz,
        migration_import_done_at timestamptz,
        migration_aborted_at timestamptz,
        migration_skipped_at timestamptz,
        migration_retries_count integer NOT NULL DEFAULT 0,
        migration_aborted_in_state text,
        migration_plan text
    );
    CREATE TABLE public.writes (
        sequence bigint GENERATED ALWAYS AS IDENTITY,
        id bigint, old_state text, new_state text, application text
    );
    CREATE FUNCTION public.log_write() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.writes (id, old_state, new_state, application)
            VALUES (NEW.id, OLD.migration_state, NEW.migration_state, current_setting('application_name'));
            RETURN NEW;
        END $$;
    CREATE TRIGGER log_write AFTER UPDATE ON public.container_repositories
        FOR EACH ROW EXECUTE FUNCTION public.log_write();
"""

TOO_MANY_TAGS = ("import_skipped", 2)
DEFAULT: tuple[str, int | None] = ("default", None)


def fill(connection: psycopg.Connection[Any], rows: Mapping[int, tuple[str, int | None]]) -> None:
    """Insert rows: id → state and reason."""
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY public.container_repositories (id, project_id, name, migration_state, migration_skipped_reason)"
            " FROM STDIN"
        ) as copy,
    ):
        for key, (state, reason) in rows.items():
            copy.write_row((key, key, f"repository-{key}", state, reason))


def states(connection: psycopg.Connection[Any]) -> dict[int, tuple[str, int | None]]:
    """Return id → state and reason of every row."""
    found = connection.execute("SELECT id, migration_state, migration_skipped_reason FROM container_repositories")
    return {key: (state, reason) for key, state, reason in found}


def written(connection: psycopg.Connection[Any]) -> list[int]:
    """Return the ids of all rows that were written, in order, once for each write."""
    return [key for (key,) in connection.execute("SELECT id FROM writes ORDER BY sequence")]


@dataclass
class Feed:
    """Produces events of container_repositories, as a producer would."""

    settings: Settings
    partitions: int = 4
    database: str = "main"
    gitlab_schema: str = "gitlab_main"
    xid: int = 7
    """The low half of the events' transaction id: one that ended long ago."""

    def __post_init__(self) -> None:
        registry = open_registry(self.settings)
        self.topic = table_topic(
            self.settings.prefix, self.gitlab_schema, self.database, "public", "container_repositories"
        )
        topics.ensure_topic(self.settings.kafka, self.topic, partitions=self.partitions)
        self.encoder = Encoder(
            RELATION,
            self.gitlab_schema,
            ("id",),
            origin=Origin(self.database, self.database),
            value_schema_id=registry.register(f"{self.topic}-value", value_schema(RELATION, self.gitlab_schema)),
            key_schema_id=registry.register(f"{self.topic}-key", key_schema(RELATION, self.gitlab_schema, ("id",))),
        )
        self.lsn = 1_000

    def row(self, key: int, state: str | Unchanged, reason: int | Unchanged | None) -> list[bytes | Unchanged | None]:
        """Return the row's text as in the WAL."""
        now = b"2024-05-06 07:08:09.123456+00"
        return [
            b"%d" % key, b"%d" % key, b"repository-%d" % key, b"0", now, now,
            state if isinstance(state, Unchanged) else state.encode(),
            reason if isinstance(reason, Unchanged) else None if reason is None else b"%d" % reason,
            None, now, b"0", None,
        ]  # fmt: skip

    def upsert(
        self, key: int, state: str | Unchanged, reason: int | Unchanged | None, op: Op = Op.CREATE
    ) -> tuple[bytes, bytes]:
        """Return the record of a row's new state."""
        self.lsn += 8
        prefix = self.encoder.event_prefix(op, lsn=Lsn(self.lsn), xid=self.xid, ts_ms=1_700_000_000_000)
        return self.encoder.change(prefix, 0, 1_700_000_000_001, self.row(key, state, reason))

    def delete(self, key: int) -> list[tuple[bytes, bytes | None]]:
        """Return the records of a delete: the event and its tombstone."""
        self.lsn += 8
        prefix = self.encoder.event_prefix(Op.DELETE, lsn=Lsn(self.lsn), xid=self.xid, ts_ms=1_700_000_000_000)
        old: list[bytes | Unchanged | None] = [b"%d" % key, *([None] * (len(RELATION.columns) - 1))]
        record = self.encoder.delete(prefix, 0, 1_700_000_000_001, old)
        return [record, (record[0], None)]

    def truncate(self) -> tuple[bytes, bytes]:
        """Return the record of a truncate."""
        self.lsn += 8
        prefix = self.encoder.event_prefix(Op.TRUNCATE, lsn=Lsn(self.lsn), xid=self.xid, ts_ms=1_700_000_000_000)
        key_id = open_registry(self.settings).register(f"{self.topic}-truncate-key", TRUNCATE_KEY)
        return wire_header(key_id), self.encoder.truncate(prefix, 0, 1_700_000_000_001)

    def send(self, records: Iterable[tuple[bytes, bytes | None]], *, commit: bool = True) -> None:
        """Produce records in one Kafka transaction, committed or aborted."""
        producer: Producer = clients.producer(
            self.settings.kafka, transactional_id=f"{self.settings.prefix}.feed", queue_buffering_max_messages=2_000_000
        )
        producer.init_transactions(120)
        producer.begin_transaction()
        for number, (key, value) in enumerate(records):
            producer.produce(self.topic, key=key, value=value)
            if number % 10_000 == 0:
                producer.poll(0)
        if commit:
            producer.commit_transaction(120)
        else:
            producer.abort_transaction(120)
        until_shown(self.settings.kafka, self.topic)

    def snapshot(self, rows: Mapping[int, tuple[str, int | None]]) -> None:
        """Produce rows as a snapshot would."""
        self.send(self.upsert(key, state, reason, Op.READ) for key, (state, reason) in rows.items())


def write_settings(path: Path, settings: Mapping[str, Any]) -> Path:
    """Write a settings file; values are TOML's own, as nested dicts."""
    lines: list[str] = []

    def table(name: str, values: Mapping[str, Any]) -> None:
        plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
        if name:
            lines.append(f"[{name}]")
        for key, value in plain.items():
            text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            lines.append(f"{_key(key)} = {text}")
        for key, value in values.items():
            if isinstance(value, Mapping):
                table(f"{name}.{_key(key)}" if name else _key(key), value)

    table("", settings)
    path.write_text("\n".join(lines) + "\n")
    return path


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else f'"{key}"'


MEMBER = """
import sys
from pathlib import Path
from consumers.commands.consume import consume
from schemas.errors import HeadraceError
try:
    consume(sys.argv[2], dry=False, until_caught_up=sys.argv[3] == "yes", as_json=True, config=Path(sys.argv[1]))
except HeadraceError as error:
    print(f"headrace: error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


IMPATIENT_MEMBER = f"import consumers.delivery.group\nconsumers.delivery.group.SESSION_TIMEOUT_MS = 2_000\n{MEMBER}"
"""A consumer that the group removes after two seconds of silence, not ten."""


def start_impatient_member(config: Path) -> subprocess.Popen[str]:
    """Start such a consumer; kill it and wait for it when done."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT_MEMBER, str(config), "skip_resets", "no"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_member(
    config: Path, *, migration: str = "skip_resets", until_caught_up: bool = False, extra: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a consumer as its own process; kill it and wait for it when done."""
    return subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(config), migration, "yes" if until_caught_up else "no", *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
