"""Lets Debezium's JDBC sink write topics into an empty database, in a standalone worker of Kafka Connect.

`python -m tests.interop.read_jdbc REQUEST`. The sink creates the tables, and writes a row by the record's key. The
tables are read once the worker has committed its offsets, which follow what it has written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import conninfo_to_dict

from consumers.testing.waiting import until
from infra.postgres.connect import connect
from infra.stack.processes.keeper import Keeper
from infra.stack.processes.ports import free_port
from tests.interop.changes import rows_of

_SECONDS: Final = 240.0


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    directory = Path(request["answer"]).with_suffix(f".{_name(request)}")
    directory.mkdir()
    files = [_written(directory / name, settings) for name, settings in _settings(request, directory).items()]
    words = [request["java"], *request["options"], "-cp", ":".join(request["classpath"])]
    words += ["org.apache.kafka.connect.cli.ConnectStandalone", *map(str, files)]
    with closing(Keeper()) as keeper:
        worker = keeper.start(words, log=directory / "worker.log", cwd=directory)
        admin = AdminClient({"bootstrap.servers": request["bootstrap"]})

        def written() -> bool:
            assert worker.poll() is None, worker.last_lines()
            text = worker.log.read_text(encoding="utf-8", errors="replace")
            assert "Task threw an uncaught" not in text, text[text.index("Task threw an uncaught") :][:4_000]
            return all(_committed(admin, request, table) for table in request["tables"])

        until(written, "the sink has committed its offsets", _SECONDS)
    Path(request["answer"]).write_text(json.dumps(_read(request)), encoding="utf-8")


def _settings(request: Mapping[str, Any], directory: Path) -> dict[str, dict[str, str]]:
    """Return the worker's file and the connector's."""
    target = conninfo_to_dict(request["target"])
    worker = {
        "bootstrap.servers": request["bootstrap"],
        "consumer.isolation.level": "read_committed",
        "consumer.auto.offset.reset": "earliest",
        "offset.storage.file.filename": str(directory / "offsets"),
        "offset.flush.interval.ms": "500",
        "plugin.discovery": "only_scan",
        "listeners": f"http://127.0.0.1:{free_port()}",
    }
    for part in ("key", "value"):
        worker |= {
            f"{part}.converter": "io.apicurio.registry.utils.converter.AvroConverter",
            f"{part}.converter.apicurio.registry.url": request["registry"],
            # Ids in four bytes, those of the Confluent-compatible interface.
            f"{part}.converter.apicurio.registry.as-confluent": "true",
            f"{part}.converter.apicurio.registry.use-id": "contentId",
        }
    connector = {
        "name": _name(request),
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": "1",
        "topics": ",".join(table["topic"] for table in request["tables"]),
        "connection.url": f"jdbc:postgresql://{target['host']}:{target['port']}/{target['dbname']}",
        "connection.username": str(target["user"]),
        "connection.password": str(target.get("password", "")),
        "insert.mode": "upsert",
        "delete.enabled": "true",
        "primary.key.mode": "record_key",
        "schema.evolution": "basic",
    }
    return {"worker.properties": worker, "connector.properties": connector}


def _name(request: Mapping[str, Any]) -> str:
    """Return a name that no other worker has: a second one in its group would wait until the first has timed out."""
    return str(request["tables"][0]["topic"])


def _written(file: Path, settings: Mapping[str, str]) -> Path:
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    return file


def _committed(admin: AdminClient, request: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    """Whether the worker has committed everything up to the last record of each partition."""
    wanted = {int(partition): offset for partition, offset in table["last"].items()}
    asked = ConsumerGroupTopicPartitions(
        f"connect-{_name(request)}", [TopicPartition(table["topic"], partition) for partition in wanted]
    )
    (answer,) = admin.list_consumer_group_offsets([asked]).values()
    return all(each.offset > wanted[each.partition] for each in answer.result().topic_partitions)


def _read(request: Mapping[str, Any]) -> dict[str, Any]:
    types: dict[str, dict[str, str]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with connect(request["target"], name="test", reading=True) as connection:
        for table in request["tables"]:
            name, created = table["name"], table["topic"].replace(".", "_")
            types[name] = _types(connection, created)
            rows[name] = [
                {
                    column: value == "t" if types[name][column] == "boolean" and value else value
                    for column, value in row.items()
                }
                for row in rows_of(connection, created, list(types[name]))
            ]
    return {"types": types, "rows": rows}


def _types(connection: psycopg.Connection[Any], table: str) -> dict[str, str]:
    found = connection.execute(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (f"public.{table}",),
    )
    return dict(found.fetchall())


if __name__ == "__main__":
    main()
