"""The stored state of a headrace version as files: written by that version, loaded into fresh servers by later ones.

The files are `tables.sql` and `rows.json` (headrace's own tables), `topics.json` (positions, schemas, dead letters) and
the settings without their dsn. A release writes its own into tests/upgrades/states/<version> (tests.upgrades.release).
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import psycopg
import tomli_w
from confluent_kafka import Producer
from psycopg import sql

from infra.kafka import clients, topics
from infra.kafka.topics import ONLY_PARTITION, LogReader
from infra.postgres.control import control_sql
from infra.settings.file import load_settings
from infra.settings.model import Settings

RELEASED: Final = Path(__file__).parent / "states"

_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'headrace'::regnamespace AND relkind = 'r' ORDER BY 1"
)
_KEPT: Final = re.compile(r"positions|schemas|dead_letters\..+")


def save(config: Path, directory: Path) -> None:
    """Write the state of the settings' only database, and of the topics with its prefix."""
    settings = load_settings(config)
    ((_, section),) = settings.databases.items()
    directory.mkdir(parents=True, exist_ok=True)
    with psycopg.connect(section.dsn.get_secret_value()) as connection:
        names = [name for (name,) in connection.execute(_TABLES)]
        rows = {name: [row for (row,) in connection.execute(_rows(name))] for name in names}
    (directory / "tables.sql").write_text(control_sql())
    (directory / "rows.json").write_text(json.dumps(rows, indent=1, sort_keys=True))
    (directory / "topics.json").write_text(json.dumps(dict(_records(settings)), indent=1))
    written = tomllib.loads(config.read_text())
    for one in written["databases"].values():
        one["dsn"] = "postgresql://"
    (directory / "headrace.toml").write_text(tomli_w.dumps(written))


def restore(directory: Path, settings: Settings, connection: psycopg.Connection[Any]) -> None:
    """Load a state into an empty database, and into topics with another prefix."""
    connection.execute((directory / "tables.sql").read_text())
    for name, rows in json.loads((directory / "rows.json").read_text()).items():
        table = sql.Identifier("headrace", name)
        insert = sql.SQL("INSERT INTO {} SELECT * FROM jsonb_populate_recordset(NULL::{}, %s)").format(table, table)
        if rows:
            connection.execute(insert, (json.dumps(rows),))
    connection.execute("UPDATE headrace.database SET prefix = %s", (settings.prefix,))
    client = clients.producer(settings.kafka)
    for name, records in json.loads((directory / "topics.json").read_text()).items():
        _fill(client, settings, f"{settings.prefix}.{name}", records)
    client.flush()


def _rows(table: str) -> sql.Composed:
    return sql.SQL("SELECT to_jsonb(t) FROM {} AS t").format(sql.Identifier("headrace", table))


def _records(settings: Settings) -> Any:
    for name in sorted(topics.partition_counts(settings.kafka)):
        short = name.removeprefix(f"{settings.prefix}.")
        if short != name and _KEPT.fullmatch(short):
            yield (
                short,
                [
                    [
                        _text(message.key()),
                        _text(message.value()),
                        [[name, _text(each)] for name, each in dict(message.headers() or []).items()],
                    ]
                    for message in LogReader(settings.kafka, name).read()
                ],
            )


def _fill(client: Producer, settings: Settings, topic: str, records: list[Any]) -> None:
    topics.ensure_topic(settings.kafka, topic, partitions=1)
    for key, value, headers in records:
        client.produce(
            topic,
            key=_bytes(key),
            value=_bytes(value),
            headers=[(name, _bytes(each)) for name, each in headers],
            partition=ONLY_PARTITION,
        )


def _text(raw: Any) -> str | None:
    """Return bytes in a form that JSON can hold, each as one character."""
    return None if raw is None else bytes(raw).decode("latin-1")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("latin-1")
