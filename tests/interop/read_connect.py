"""Passes records through Kafka Connect's parts for a sink, in a JVM of its own.

`python -m tests.interop.read_connect REQUEST`. Apicurio's AvroConverter for key and value, Debezium's
ExtractNewRecordState with its defaults (it adds no maps, so not `exact`), and Kafka's JsonConverter, which writes the
schema that a sink would see.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jpype


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    jpype.startJVM(request["jvm"], *request["options"], classpath=request["classpath"], convertStrings=True)
    reader = Reader(request["registry"])
    rows = {table["name"]: reader.read(table) for table in request["tables"]}
    answer = {"types": reader.types, "keys": reader.keys, "rows": rows}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


class Reader:
    """The parts, configured for one registry."""

    def __init__(self, registry: str) -> None:
        avro = jpype.JClass("io.apicurio.registry.utils.converter.AvroConverter")
        self._key, self._value = avro(), avro()
        # Ids in four bytes, those of the Confluent-compatible interface.
        settings = {"apicurio.registry.url": registry, "apicurio.registry.as-confluent": "true"}
        settings["apicurio.registry.use-id"] = "contentId"
        self._key.configure(_map(settings), True)
        self._value.configure(_map(settings), False)
        self._transform = jpype.JClass("io.debezium.transforms.ExtractNewRecordState")()
        self._transform.configure(_map({}))
        self._json = jpype.JClass("org.apache.kafka.connect.json.JsonConverter")()
        self._json.configure(_map({"schemas.enable": "true", "decimal.format": "NUMERIC"}), False)
        self._record = jpype.JClass("org.apache.kafka.connect.sink.SinkRecord")
        self.types: dict[str, dict[str, str]] = {}
        self.keys: dict[str, dict[str, str]] = {}
        """Table → column → its type, in a row and in a key."""

    def read(self, table: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows; adds the columns' types."""
        types, keys = self.types.setdefault(table["name"], {}), self.keys.setdefault(table["name"], {})
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for key, value in self._transformed(table):
            keys.update((field["field"], _type(field)) for field in key["schema"]["fields"])
            place = tuple(str(key["payload"][name]) for name in table["key"])
            if value is None:
                rows.pop(place, None)
                continue
            types.update((field["field"], _type(field)) for field in value["schema"]["fields"])
            payload = value["payload"]
            rows[place] = {column["name"]: _reported(payload.get(column["name"])) for column in table["columns"]}
        return list(rows.values())

    def _transformed(self, table: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each record's key and value as a sink gets them, in JSON; None for a deleted row."""
        topic = table["topic"]
        with Path(table["records"]).open(encoding="utf-8") as lines:
            for line in lines:
                partition, offset, key, value = json.loads(line)
                read_key = self._key.toConnectData(topic, _bytes(key))
                read = self._value.toConnectData(topic, _bytes(value))
                record = self._record(
                    topic, partition, read_key.schema(), read_key.value(), read.schema(), read.value(), offset
                )
                passed = self._transform.apply(record)
                if passed is not None:
                    shown_key = self._shown(topic, passed.keySchema(), passed.key())
                    deleted = passed.value() is None
                    yield shown_key, None if deleted else self._shown(topic, passed.valueSchema(), passed.value())

    def _shown(self, topic: str, schema: Any, value: Any) -> Any:
        text = bytes(self._json.fromConnectData(topic, schema, value)).decode()
        return json.loads(text, parse_float=str)


def _type(field: Mapping[str, Any]) -> str:
    """Return a type as its name, in Connect's words, and the name of what it means."""
    name = field.get("name", "")
    scale = field.get("parameters", {}).get("scale")
    return " ".join(part for part in (field["type"].upper(), name, f"scale {scale}" if scale else "") if part)


def _reported(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else str(value)


def _map(values: Mapping[str, str]) -> Any:
    made = jpype.java.util.HashMap()
    for key, value in values.items():
        made.put(key, value)
    return made


def _bytes(text: str | None) -> Any:
    return None if text is None else jpype.JArray(jpype.JByte)(base64.b64decode(text))


if __name__ == "__main__":
    main()
