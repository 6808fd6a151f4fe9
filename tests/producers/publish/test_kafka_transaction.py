"""Writes to Kafka: complete transactions, in order, by one writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from consumers.testing.waiting import until
from infra.kafka.topics import LogReader, end_offsets, ensure_topic
from infra.settings.model import KafkaSettings
from infra.state.positions import StreamState, encode
from producers.publish import kafka_transaction as relay_module
from producers.publish.kafka_transaction import Relay
from schemas.errors import Fenced, HeadraceError
from schemas.positions import Lsn

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(bootstrap_servers: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=3)


@pytest.fixture
def topic(settings: KafkaSettings, prefix: str) -> str:
    name = f"{prefix}.data"
    ensure_topic(settings, name, partitions=1)
    ensure_topic(settings, f"{prefix}.positions", partitions=1)
    return name


@pytest.fixture
def relay(settings: KafkaSettings, prefix: str, topic: str) -> Iterator[Relay]:
    opened = Relay(settings, prefix, f"{prefix}.positions")
    yield opened
    opened.close()


def values(settings: KafkaSettings, topic: str) -> list[bytes | None]:
    return [message.value() for message in LogReader(settings, topic).read()]


def shown(settings: KafkaSettings, topic: str, expected: list[bytes | None]) -> None:
    """Fail unless the topic gets these values; a commit returns slightly before it is visible."""
    until(lambda: len(values(settings, topic)) >= len(expected), f"{len(expected)} records")
    assert values(settings, topic) == expected


def record(number: int) -> dict[str, bytes]:
    return {"key": b"k", "value": b"%d" % number}


def test_records_are_visible_once_committed_with_position(
    settings: KafkaSettings, topic: str, prefix: str, relay: Relay
) -> None:
    state = StreamState(
        source="main", instance="i", slot="s", system_identifier="1", commit_lsn=Lsn(1), ordinal=0,
        confirmed_lsn=Lsn(1), ts_ms=0,
    )  # fmt: skip
    relay.send(topic, [record(1), {"key": b"k", "value": None}])
    relay.record([(b"main", state), (b"main/public.t", None)])
    assert relay.pending
    assert values(settings, topic) == []
    relay.commit()
    assert not relay.pending
    shown(settings, topic, [b"1", None])
    shown(settings, f"{prefix}.positions", [encode(state), None])


def write(relay: Relay, topic: str) -> None:
    relay.send(topic, [record(1)])
    relay.commit()


def test_uncommitted_records_are_discarded(settings: KafkaSettings, topic: str, prefix: str, relay: Relay) -> None:
    relay.send(topic, [record(1)])
    relay.close()
    assert values(settings, topic) == []
    with_another = Relay(settings, prefix, f"{prefix}.positions")
    with_another.send(topic, [record(2)])
    with_another.commit()
    with_another.close()
    shown(settings, topic, [b"2"])


@pytest.mark.parametrize("moment", ["before a transaction", "within one", "with one sent"])
def test_a_second_relay_fences_the_first(
    settings: KafkaSettings, topic: str, prefix: str, relay: Relay, moment: str
) -> None:
    if moment != "before a transaction":
        relay.send(topic, [record(1)])
    if moment == "with one sent":
        relay._producer.flush()
    second = Relay(settings, prefix, f"{prefix}.positions")
    if moment == "before a transaction":
        with pytest.raises(Fenced, match="Another process took over"):
            write(relay, topic)
    else:
        with pytest.raises(Fenced, match="Another process took over"):
            relay.commit()
    second.send(topic, [record(2)])
    second.commit()
    second.close()
    shown(settings, topic, [b"2"])


def test_a_fenced_relay_stays_fenced_while_it_sends(
    settings: KafkaSettings, topic: str, prefix: str, relay: Relay
) -> None:
    relay.send(topic, [record(1)])
    second = Relay(settings, prefix, f"{prefix}.positions")
    second.close()
    with pytest.raises(Fenced):
        relay.commit()
    with pytest.raises(Fenced):
        relay.send(topic, [record(2)])


def test_row_above_client_limit_is_reported(settings: KafkaSettings, topic: str, prefix: str) -> None:
    small = settings.model_copy(update={"options": {"message.max.bytes": 1_000_000}})
    with closing(Relay(small, f"{prefix}.small", f"{prefix}.positions")) as narrow:
        with pytest.raises(HeadraceError, match=rf"a row for topic {topic} is 2000000 bytes long.*; set \"message.max"):
            narrow.send(topic, [record(1), {"key": b"k", "value": b"x" * 2_000_000}])


def test_a_record_goes_to_the_partition_it_names(
    settings: KafkaSettings, topic: str, prefix: str, relay: Relay
) -> None:
    wide = f"{prefix}.wide"
    ensure_topic(settings, wide, partitions=3)
    relay.send(wide, [{**record(number), "partition": number} for number in range(3)])
    relay.send(wide, [record(9), {**record(1), "partition": 1}, record(9)])
    relay.commit()
    # Each partition ends in the transaction's mark; one of them has the two records that name none.
    until(lambda: sum(end_offsets(settings, wide).values()) == 6 + 3, "all of it")
    assert min(end_offsets(settings, wide).values()) >= 2


def test_records_beyond_queue_size_stay_in_order(
    settings: KafkaSettings, topic: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_QUEUE_MESSAGES", 50)
    narrow = Relay(settings, f"{prefix}.narrow", f"{prefix}.positions")
    try:
        narrow.send(topic, [record(number) for number in range(2000)])
        narrow.commit()
    finally:
        narrow.close()
    shown(settings, topic, [b"%d" % number for number in range(2000)])
