"""Large values are published completely; one above the topic's limit stops only its table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.testing.waiting import until
from infra.kafka import clients
from infra.kafka.topics import COMPACTED, ensure_topic
from tests.producers.sources import Source, running, topic_of

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

SCHEMA = "CREATE TABLE t (id int PRIMARY KEY, v text, w text); CREATE TABLE u (id int PRIMARY KEY)"
VALUE = "repeat(md5('{}'), {} / 32)"


@pytest.mark.long
@pytest.mark.parametrize("size", [10_000_000, 100_000_000])
def test_large_value_is_complete_in_snapshot_and_stream(new_source: NewSource, size: int) -> None:
    source = new_source(SCHEMA, "public.t", "public.u")
    connection = source.connection
    connection.execute(f"INSERT INTO t VALUES (1, {VALUE.format('a', size)}, 'w')".encode())
    with running(source) as producer:
        producer.caught_up()
        connection.execute(f"INSERT INTO t VALUES (2, {VALUE.format('b', size)}, 'w')".encode())
        producer.caught_up()
    records = source.records("public.t")
    assert [record.op for record in records] in (["r", "c"], ["c", "r"])
    for record in records:
        assert record.event is not None
        assert record.event.after is not None
        value = record.event.after["v"]
        shown = connection.execute(
            "SELECT length(v), v = %s FROM t WHERE id = %s", (value, record.key["id"])
        ).fetchone()
        assert shown == (size, True)


def stopped(source: Source) -> str:
    snapshot = source.state().snapshots.get("public.t")
    return (snapshot and snapshot.stopped) or ""


@pytest.mark.parametrize("streamed", [False, True])
def test_a_value_above_the_topics_limit_stops_that_table_alone(new_source: NewSource, streamed: bool) -> None:
    source = new_source(SCHEMA, "public.t", "public.u")
    ensure_topic(
        source.settings.kafka,
        topic_of(source.settings, "public.t"),
        config={**COMPACTED, "max.message.bytes": "1048588"},
    )
    row = f"INSERT INTO t VALUES (1, {VALUE.format('a', 2_000_000)}, repeat('w', 10000))".encode()
    if not streamed:
        source.connection.execute(row)
    with running(source) as producer:
        if streamed:
            producer.caught_up()
            source.connection.execute(row)

        def noticed() -> bool:
            producer.check()
            return bool(stopped(source))

        until(noticed, "the table to be stopped")
        source.connection.execute("INSERT INTO u VALUES (1)")
        source.passes(producer.check)
        source.connection.execute("INSERT INTO t VALUES (3)")
        source.passes(producer.check)
    assert source.records("public.t") == []
    assert "but its topic accepts 1047588 (its key is id; bytes of its largest columns: v 2000000, w 10000" in (
        stopped(source)
    )
    source.require_equal("public.u")


def test_new_topic_gets_configured_message_limit(new_source: NewSource) -> None:
    source = new_source(SCHEMA, "public.t", "public.u")
    options = {"message.max.bytes": 3_000_000}
    settings = source.settings.kafka.model_copy(update={"options": options})
    source.settings = source.settings.model_copy(update={"kafka": settings})
    assert clients.record_bytes(settings) == 3_000_000
    source.connection.execute(f"INSERT INTO t VALUES (1, {VALUE.format('a', 2_000_000)})".encode())
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute(f"INSERT INTO t VALUES (2, {VALUE.format('a', 4_000_000)})".encode())
        until(lambda: "accepts 3000000" in stopped(source), "the table to be stopped")
    assert [record.key for record in source.records("public.t")] == [{"id": 1}]
