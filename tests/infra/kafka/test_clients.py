"""Kafka clients on a real broker, and errors if it does not answer or fences them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumers.testing.waiting import until
from infra.kafka import clients, topics
from infra.kafka.denials import AccessDenied
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, Fenced, HeadraceError, SettingsError

SECRET = "s3cret-of-the-test"


@pytest.fixture
def settings(bootstrap_servers: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=bootstrap_servers)


@pytest.fixture
def nowhere() -> Iterator[KafkaSettings]:
    """A broker's address on which no process listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield KafkaSettings(bootstrap_servers=f"127.0.0.1:{held.getsockname()[1]}")


def test_a_broker_that_answers(settings: KafkaSettings) -> None:
    clients.ensure_reachable(settings)


def test_an_unreachable_broker_is_named_with_the_remedy(nowhere: KafkaSettings) -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        clients.ensure_reachable(nowhere, timeout=1.0)
    message = str(caught.value)
    assert message.startswith(f"Kafka at {nowhere.bootstrap_servers} does not answer: ")
    assert "kafka.bootstrap_servers in the settings" in message
    assert "\n" not in message


def test_an_option_that_librdkafka_refuses_is_a_mistake_in_the_settings() -> None:
    # Each is fine by itself, so that the settings take it.
    wrong = KafkaSettings(options={"ssl.ca.location": SECRET, "security.protocol": "ssl"})
    for build in (
        lambda: clients.admin(wrong),
        lambda: clients.producer(wrong),
        lambda: clients.consumer(wrong, "group"),
    ):
        with pytest.raises(SettingsError) as caught:
            build()
        assert str(caught.value).startswith("kafka.options: ")
        assert "ssl.ca.location" in str(caught.value)


def test_superseded_producer_is_fenced(settings: KafkaSettings, prefix: str) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    first = clients.producer(settings, transactional_id=prefix)
    first.init_transactions(120)
    first.begin_transaction()
    first.produce(prefix, b"lost", key=b"k")
    second = clients.producer(settings, transactional_id=prefix)
    second.init_transactions(120)
    with pytest.raises(Fenced, match="this process was fenced") as caught, clients.translated(settings):
        first.commit_transaction(120)
    assert caught.value.exit_code == 3
    assert not list(topics.LogReader(settings, prefix).read())


def test_a_consumer_reads_committed_records_from_the_beginning_and_commits_nothing(
    settings: KafkaSettings, prefix: str
) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    producer = clients.producer(settings, transactional_id=prefix)
    producer.init_transactions(120)
    for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(prefix, value, key=value)
        producer.flush(120)
        end(30)
    seen = []
    with clients.reading(settings, enable_partition_eof=True) as client:
        client.assign([TopicPartition(prefix, 0)])
        while (message := client.poll(120)) is not None and message.error() is None:
            seen.append(message.value())
        assert seen == [b"kept"]
        assert message is not None, "the end of the partition, and not silence, ended the loop"
        assert [each.offset for each in client.committed([TopicPartition(prefix, 0)], timeout=120)] == [-1001]


class Stuck:
    """A consumer whose close waits for `let_go`, as librdkafka's destructor may without end."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.closed = threading.Event()

    def close(self) -> None:
        self.let_go.wait()
        self.closed.set()


def test_consumer_that_cannot_be_closed_is_left_to_a_thread() -> None:
    stuck = Stuck()
    assert not clients.leave(cast(Consumer, stuck), 0.01)
    assert not stuck.closed.is_set()
    stuck.let_go.set()
    assert clients.leave(cast(Consumer, stuck), 120)
    assert stuck.closed.is_set()


def test_reader_is_closed_and_its_errors_are_translated(settings: KafkaSettings, prefix: str) -> None:
    with pytest.raises(BrokerUnavailable), clients.reading(settings) as client:
        raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    with pytest.raises(RuntimeError, match="closed"):
        client.poll(0)


def test_idle_reader_is_used_again_for_the_same_settings_without_its_assignment(
    settings: KafkaSettings, prefix: str
) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    with clients.reading(settings, enable_partition_eof=True) as first:
        clients.assign(first, [TopicPartition(prefix, 0)])
        with clients.reading(settings, enable_partition_eof=True) as meanwhile:
            assert meanwhile is not first
    with clients.reading(settings) as other:
        assert other is not first
    with clients.reading(settings.model_copy(update={"partitions": 7}), enable_partition_eof=True) as elsewhere:
        assert elsewhere is not first
    with clients.reading(settings, enable_partition_eof=True) as again:
        assert again in (first, meanwhile)
        assert again.assignment() == []
        clients.assign(again, [TopicPartition(prefix, 0)])
        assert (message := again.poll(120)) is not None
        assert (end := message.error()) is not None
        assert end.code() == KafkaError._PARTITION_EOF


def test_reader_that_nothing_took_for_long_is_closed_at_the_next_use_of_any(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its brokers may be gone: it would try to connect for ever."""
    with clients.reading(settings) as first:
        pass
    monkeypatch.setattr(clients, "IDLE_SECONDS", 0)
    with clients.reading(settings) as other:
        assert other is not first
        until(lambda: closed(first), "the reader is closed")


def closed(client: Consumer) -> bool:
    try:
        client.assignment()
    except RuntimeError:
        return True
    return False


def test_only_a_few_idle_readers_stay_open(settings: KafkaSettings) -> None:
    with contextlib.ExitStack() as opened:
        many = [opened.enter_context(clients.reading(settings)) for _ in range(clients.IDLE_READERS + 1)]
    until(lambda: any(map(closed, many)), "the one that waited longest is closed")
    assert not all(map(closed, many))


def test_the_settings_options_reach_the_client(settings: KafkaSettings, prefix: str) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    small = settings.model_copy(update={"options": {"message.max.bytes": 1000}})
    with pytest.raises(KafkaException) as caught:
        clients.producer(small).produce(prefix, b"x" * 2000)
    assert caught.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_no_option_of_the_settings_wins_over_what_headrace_passes(settings: KafkaSettings, prefix: str) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    harmful: dict[str, str | int | float | bool] = {
        "isolation.level": "read_uncommitted",
        "auto.offset.reset": "latest",
        "enable.partition.eof": False,
        "transactional.id": "one for all",
        "fetch.wait.max.ms": 9_000,
    }
    # Copied, since the settings' own check refuses most of them.
    worst = settings.model_copy(update={"options": harmful})
    producer = clients.producer(worst, transactional_id=prefix)
    producer.init_transactions(120)
    producer.begin_transaction()
    producer.produce(prefix, b"aborted", key=b"k")
    producer.flush(120)
    producer.abort_transaction(30)
    plain = clients.producer(worst, acks="all")
    plain.produce(prefix, b"kept", key=b"k")
    assert plain.flush(120) == 0, "without a transaction"
    assert [message.value() for message in topics.LogReader(worst, prefix).read()] == [b"kept"]


def test_defaults_give_way_to_the_settings_and_the_settings_to_options(settings: KafkaSettings, prefix: str) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    small = settings.model_copy(update={"options": {"linger.ms": 1, "batch.size": 1000, "message.max.bytes": 3000}})
    yielding = clients.producer(small, defaults={"message.max.bytes": 1_000_000})
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        yielding.produce(prefix, b"x" * 9000)
    clients.producer(small, message_max_bytes=1_000_000).produce(prefix, b"x" * 9000)


def test_end_offsets_distinguish_committed_from_written_records(settings: KafkaSettings, prefix: str) -> None:
    topics.ensure_topic(settings, prefix, partitions=1)
    producer = clients.producer(settings, transactional_id=prefix)
    producer.init_transactions(120)
    producer.begin_transaction()
    producer.produce(prefix, b"open", key=b"k")
    assert producer.flush(120) == 0
    assert topics.end_offsets(settings, prefix) == {0: 0}
    assert topics.written_offsets(settings, prefix) == {0: 1}
    producer.abort_transaction(30)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError._ALL_BROKERS_DOWN, BrokerUnavailable),
        (KafkaError._TRANSPORT, BrokerUnavailable),
        (KafkaError._TIMED_OUT, BrokerUnavailable),
        (KafkaError.COORDINATOR_NOT_AVAILABLE, BrokerUnavailable),
        (KafkaError._FENCED, Fenced),
        (KafkaError.INVALID_PRODUCER_EPOCH, Fenced),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AccessDenied),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, AccessDenied),
        (KafkaError._INVALID_ARG, SettingsError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, HeadraceError),
    ],
)
def test_each_kind_of_error_becomes_ours(code: int, expected: type[HeadraceError]) -> None:
    error = clients.translate(KafkaError(code, "two\nlines"), KafkaSettings(bootstrap_servers="kafka:9092"))
    assert type(error) is expected
    assert "two lines" in str(error)
    assert error.remedy
    assert expected in (Fenced, SettingsError) or "kafka:9092" in str(error)


def test_reader_to_which_brokers_stop_answering_says_why(nowhere: KafkaSettings) -> None:
    with pytest.raises(BrokerUnavailable, match=r"topic t could not be read to its end \(.*Connection refused"):
        with clients.reading(nowhere):
            raise TimeoutError("topic t could not be read to its end")
