"""Records that headrace did not write: they are left out, by name, without a traceback."""

from __future__ import annotations

import json
import struct

import pytest

from consumers.delivery.dead_letter_topic import DeadLetterWriter, read_dead_letters_topic
from infra.kafka import clients, topics
from infra.schema_registry.topic_registry import TopicRegistry, UnknownSchema
from infra.settings.model import KafkaSettings, Settings
from schemas.avro import COLUMN_PROPERTY
from schemas.codec.projection import projection
from schemas.errors import Malformed
from schemas.topics import dead_letters_topic, schemas_topic

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(bootstrap_servers: str, prefix: str) -> Settings:
    return Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=bootstrap_servers))


def send(settings: Settings, topic: str, records: list[tuple[bytes, bytes | None]]) -> None:
    """Write records; a compacted topic accepts none without a key."""
    failures: list[object] = []
    topics.ensure_topic(settings.kafka, topic, partitions=1)
    producer = clients.producer(settings.kafka)
    for key, value in records:
        producer.produce(
            topic,
            value,
            key=key,
            headers={"reason": b"\xff\xfe", "run": b"x"},
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
    assert producer.flush(120) == 0
    assert failures == []


def test_invalid_dead_letter_is_left_out_and_logged(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    topic = dead_letters_topic(settings.prefix, "skip_resets")
    hostile = [b"", b"x", b"\xff/a/0/0/1", b"main/a/zero/0/1", b"main/a/0/0/1/2", b"main/a/0/" + b"9" * 5000 + b"/1"]
    send(settings, topic, [(b"main/t/0/7/1", b"event"), *((key, b"event") for key in hostile)])
    found = read_dead_letters_topic(settings, "skip_resets")
    assert [entry.name for entry in found] == ["main/t/0/7"]
    output = capsys.readouterr()
    assert (output.out + output.err).count("record skipped, not a dead letter") == len(hostile)
    DeadLetterWriter(settings, "skip_resets", "main").remove(found)
    assert read_dead_letters_topic(settings, "skip_resets") == []


def test_invalid_schema_is_left_out_and_its_id_is_unused(settings: Settings) -> None:
    deep = "[" * 100_000
    hostile = [None, b"", b"\xff", b"7", b"[]", b"{}", json.dumps({"subject": "a", "schema": deep}).encode()]
    send(settings, schemas_topic(settings.prefix), [(b"k%d" % number, value) for number, value in enumerate(hostile)])
    registry = TopicRegistry(settings)
    mine = registry.register("mine", {"type": "record", "name": "r", "fields": []})
    assert mine == len(hostile) + 1
    for number in range(1, len(hostile) + 1):
        with pytest.raises(UnknownSchema):
            registry.schema(number)


@pytest.mark.parametrize(
    "schema",
    [
        "string",
        [],
        {"fields": []},
        {"fields": [{"name": "before", "type": ["null", {"fields": [{"name": "a", "type": {"type": "x" * 1000}}]}]}]},
    ],
)
def test_registry_answer_is_never_run_as_code(schema: object) -> None:
    with pytest.raises(Malformed):
        projection(schema, ["a"])  # type: ignore[arg-type]


def test_column_name_is_never_run_as_code() -> None:
    name = 'a"]; import os; os._exit(3) #'
    column = {"name": "c", COLUMN_PROPERTY: name, "type": ["null", "int"]}
    row = {"type": "record", "name": "row", "fields": [column]}
    project = projection({"fields": [{"name": "before", "type": ["null", row]}]}, [name])
    with pytest.raises(Malformed):
        project(struct.pack("!xI", 1))
