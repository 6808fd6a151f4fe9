"""Publishes the tables with every type, through a schema registry, while they change; and the registries themselves."""

from __future__ import annotations

import base64
import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import TopicPartition

from consumers.testing.settling import until_shown
from consumers.testing.waiting import until
from infra.kafka import clients
from infra.kafka.topics import end_offsets
from infra.postgres.connect import connect
from infra.settings.model import Settings
from infra.settings.registry_settings import RegistrySettings
from infra.stack.brokers.java import find_java
from infra.stack.processes.keeper import Guarded, Keeper
from infra.stack.processes.ports import free_port, free_ports
from tests.interop import changes
from tests.interop.programs import apicurio_home
from tests.producers.sources import Source, running, settings_for, topic_of

_START_SECONDS: Final = 120.0


@dataclass(frozen=True)
class World:
    """Tables that were published through a registry, and what PostgreSQL has at the end."""

    settings: Settings
    registry: str
    """The address of the registry's Confluent-compatible interface."""
    own: str
    """The address of its own interface, empty if it has none."""
    tables: dict[str, changes.Table]
    topics: dict[str, str]


@contextmanager
def apicurio(keeper: Keeper, directory: Path) -> Iterator[tuple[str, str]]:
    """Apicurio Registry with its data in memory: the addresses of its two interfaces."""
    port, management = free_ports(2)
    options = {"http.host": "127.0.0.1", "http.port": port}
    options |= {"management.host": "127.0.0.1", "management.port": management}
    words: list[str | Path] = [
        find_java(),
        "-Xmx512m",
        *(f"-Dquarkus.{name}={value}" for name, value in options.items()),
    ]
    home = apicurio_home()
    process = keeper.start([*words, "-jar", home / "quarkus-run.jar"], log=directory / "apicurio.log", cwd=directory)
    try:
        base = f"http://127.0.0.1:{port}/apis"
        _until_answers(process, f"{base}/ccompat/v7/subjects")
        yield f"{base}/ccompat/v7", f"{base}/registry/v2"
    finally:
        process.kill()


@contextmanager
def served_topic(keeper: Keeper, directory: Path, settings: Settings) -> Iterator[str]:
    """`headrace schema-registry`, over the schemas topic of these settings."""
    config, port = directory / "headrace.toml", free_port()
    config.write_text(
        f'prefix = "{settings.prefix}"\n[kafka]\nbootstrap_servers = "{settings.kafka.bootstrap_servers}"\n'
    )
    words = [sys.executable, "-m", "headrace", "schema-registry", "--listen", f"127.0.0.1:{port}", "--config", config]
    process = keeper.start([*map(str, words)], log=directory / "schema-registry.log", cwd=Path(__file__).parents[2])
    try:
        _until_answers(process, f"http://127.0.0.1:{port}/subjects")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def _until_answers(process: Guarded, url: str) -> None:
    def answers() -> bool:
        assert process.poll() is None, process.last_lines()
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)

    until(answers, f"{url} answers", _START_SECONDS, passing=OSError)


def publish(
    bootstrap_servers: str, prefix: str, dsn: str, registry: str = ""
) -> tuple[Settings, dict[str, changes.Table]]:
    """Publish the tables of the empty database while they change; return the settings and the tables at the end.

    Schemas are in a topic, or in the registry at that address.
    """
    names = [f"public.{name}" for name in changes.TABLES]
    upserted = [name for name in names if name != f"public.{changes.LOGGED}"]
    settings = settings_for(bootstrap_servers, prefix, dsn, *names, upsert_tables=upserted, complete_rows=True)
    settings = settings.model_copy(update={"registry": RegistrySettings(url=registry)})
    with (
        psycopg.connect(dsn, autocommit=True) as application,
        connect(dsn, name="test", reading=True) as connection,
    ):
        changes.create(application)
        source = Source(settings, connection)
        with running(source) as producer:
            producer.caught_up()
            changes.change(application)
            producer.caught_up()
            until(lambda: _complete(source), "the rows with unchanged values are read")
        return settings, changes.tables(connection)


def _complete(source: Source) -> bool:
    states = source.state().snapshots.values()
    return not any(state.incomplete.keys or state.incomplete.snapshot for state in states)


def write_records(settings: Settings, topic: str, file: Path) -> dict[int, int]:
    """Write the topic's committed records, each partition in order; return partition → the last record's offset.

    A line has partition, offset, and key and value in base64, the value of a tombstone null.
    """
    until_shown(settings.kafka, topic)
    last: dict[int, int] = {}
    left = {partition for partition, end in end_offsets(settings.kafka, topic).items() if end}
    with clients.reading(settings.kafka, enable_partition_eof=True) as client, file.open("w") as lines:
        client.assign([TopicPartition(topic, partition, 0) for partition in sorted(left)])
        while left:
            message = client.poll(120)
            assert message is not None, f"{topic} stopped answering"
            partition = message.partition()
            assert partition is not None
            if message.error() is not None:
                left.discard(partition)  # its end
                continue
            offset = message.offset()
            assert offset is not None
            last[partition] = offset
            line = [partition, offset, _base64(message.key()), _base64(message.value())]
            lines.write(json.dumps(line) + "\n")
    return last


def _base64(content: Any) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def topics_of(settings: Settings) -> dict[str, str]:
    return {name: topic_of(settings, f"public.{name}") for name in changes.TABLES}
