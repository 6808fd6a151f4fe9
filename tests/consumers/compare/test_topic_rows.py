"""Reads records of a topic by their places, and what was written since others were."""

from __future__ import annotations

import pytest

from consumers.compare import topic_rows
from consumers.compare.marks import PARTITION_BITS
from consumers.compare.topic_rows import Latest, TopicRows
from consumers.testing.waiting import PATIENCE
from infra.kafka import clients
from infra.kafka.topics import ensure_topic
from infra.settings.model import KafkaSettings

pytestmark = pytest.mark.stack

KEY = b"\0\0\0\0\5"


@pytest.mark.parametrize("far", [1, 50_000])
def test_records_at_places_are_read_and_those_that_are_gone_are_left_out(
    bootstrap_servers: str, prefix: str, far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_rows, "_FAR", far)
    settings = KafkaSettings(bootstrap_servers=bootstrap_servers)
    topic = f"{prefix}.places"
    ensure_topic(settings, topic, partitions=2)
    writer = clients.producer(settings)
    for number in range(100):
        value = None if number == 50 else b"%d" % number
        writer.produce(topic, key=KEY + b"%d" % (number % 90), value=value, partition=number % 2)
    assert writer.flush(PATIENCE) == 0
    rows = TopicRows(settings, topic)
    # Record n is at offset n // 2 of partition n % 2.
    wanted = {n: n % 2 << PARTITION_BITS | n // 2 for n in (0, 1, 7, 50, 51, 98)}
    never = 1 << PARTITION_BITS | 50
    found = {place: (key, latest) for place, key, latest in rows.at([*wanted.values(), never])}
    assert found == {
        place: (b"%d" % (n % 90), Latest(n % 2, n // 2, None if n == 50 else b"%d" % n)) for n, place in wanted.items()
    }


def test_last_record_is_the_known_one_unless_a_later_one_is_there(bootstrap_servers: str, prefix: str) -> None:
    settings = KafkaSettings(bootstrap_servers=bootstrap_servers)
    topic = f"{prefix}.later"
    ensure_topic(settings, topic, partitions=1)
    writer = clients.producer(settings)
    rows = TopicRows(settings, topic)

    def write(key: bytes, value: bytes) -> None:
        writer.produce(topic, key=KEY + key, value=value)
        assert writer.flush(PATIENCE) == 0

    write(b"a", b"first of a")
    write(b"b", b"first of b")
    start = rows.ends()
    known = {b"a": Latest(0, 0, b"first of a"), b"b": Latest(0, 1, b"first of b"), b"c": None, b"d": None}
    assert rows.latest(start, rows.ends(), known, 1 << 20)[0] == {key: known[key] for key in (b"a", b"b")}
    write(b"b", b"second of b")
    write(b"c", b"first of c")
    write(b"other", b"first of another")
    write(b"", b"a truncate")
    found, left_out, truncates = rows.latest(start, rows.ends(), known, 1 << 20)
    assert found == {b"a": known[b"a"], b"b": Latest(0, 2, b"second of b"), b"c": Latest(0, 3, b"first of c")}
    assert (left_out, truncates) == (set(), [b"a truncate"])
    found, left_out, _ = rows.latest(start, rows.ends(), known, 12)
    assert len(found) == 1
    assert found.keys() | left_out == {b"a", b"b", b"c"}
