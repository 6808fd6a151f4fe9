"""If Kafka does not answer, a running consumer waits and logs it, and a first start fails immediately."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from consumers.delivery.topics import schemas_of
from consumers.migrations.skip_resets import SkipResets
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.schema_registry.topic_registry import TopicRegistry
from infra.settings.model import Settings
from infra.stack import Stack
from schemas.errors import BrokerUnavailable, Interrupted
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack


class Consumer:
    """A consumer in a thread; `error` is what ended it."""

    def __init__(self, settings: Settings) -> None:
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        work = SkipResets.configure(settings.migration("skip_resets"))
        self.runtime = consumer_of(settings, work, "main", stopping=self.stopping)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.runtime.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(PATIENCE)


@pytest.fixture
def consume() -> Iterator[Callable[[Settings], Consumer]]:
    """A function that starts a consumer; all are stopped after the test."""
    started: list[Consumer] = []

    def start(settings: Settings) -> Consumer:
        started.append(Consumer(settings))
        return started[-1]

    yield start
    for consumer in started:
        consumer.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit requests to Kafka to one second instead of 30."""
    monkeypatch.setattr("infra.kafka.topics._TIMEOUT", 1.0)
    monkeypatch.setattr("consumers.delivery.group._REQUEST_SECONDS", 1.0)
    monkeypatch.setattr("consumers.delivery.topic_identity._REQUEST_SECONDS", 1.0)


@pytest.mark.long
def test_idle_consumer_waits_for_kafka_and_continues(
    stack: Stack,
    feed: Feed,
    settings: Settings,
    connection: psycopg.Connection[Any],
    consume: Callable[[Settings], Consumer],
    impatient: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A row without an event: the migration is not complete, so the consumer checks every few seconds.
    fill(connection, dict.fromkeys(range(21), TOO_MANY_TAGS))
    feed.snapshot(dict.fromkeys(range(10), TOO_MANY_TAGS))
    consumer = consume(settings)
    until(lambda: len(written(connection)) == 10, "the first events are applied")
    capsys.readouterr()
    said: list[str] = []
    stack.kafka.stop()
    try:

        def logged() -> bool:
            said.append(capsys.readouterr().out)
            return "".join(said).count("waiting for Kafka") >= 2 or not consumer.thread.is_alive()

        until(logged, "it logs that it waits")
        assert consumer.thread.is_alive(), consumer.error
    finally:
        stack.kafka.start()
    feed.snapshot(dict.fromkeys(range(10, 20), TOO_MANY_TAGS))
    until(lambda: len(written(connection)) == 20, "it continues")
    consumer.stop()
    assert consumer.error is None


def test_first_start_without_kafka_fails_immediately(
    connection: psycopg.Connection[Any], settings: Settings, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.delivery.group._REQUEST_SECONDS", 1.0)
    nowhere = settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{closed_port}"})
    chosen = settings.model_copy(update={"kafka": nowhere})
    work = SkipResets.configure(settings.migration("skip_resets"))
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{closed_port} does not answer"):
        consumer_of(chosen, work, "main", stopping=threading.Event()).run()


class SilentRegistry(TopicRegistry):
    """Does not answer the first requests."""

    def __init__(self, silences: int) -> None:
        self.silences = silences

    def schema(self, schema_id: int) -> dict[str, Any]:
        if self.silences:
            self.silences -= 1
            raise BrokerUnavailable("Kafka does not answer")
        return {"type": "record", "name": f"of{schema_id}"}


def test_only_running_consumer_waits_for_schema() -> None:
    stopping = threading.Event()
    assert schemas_of(SilentRegistry(3), stopping, again_seconds=0.01)(1)["name"] == "of1"
    with pytest.raises(BrokerUnavailable):
        schemas_of(SilentRegistry(1))(1)
    stopping.set()
    with pytest.raises(Interrupted):
        schemas_of(SilentRegistry(1), stopping)(1)


def test_request_is_abandoned_when_consumer_stops() -> None:
    stopping, answer = threading.Event(), threading.Event()
    assert clients.ask(lambda: 7, stopping) == 7
    with pytest.raises(TimeoutError, match="of the question"):
        clients.ask(_times_out, stopping)
    threading.Timer(0.2, stopping.set).start()
    with pytest.raises(Interrupted):
        clients.ask(lambda: answer.wait(PATIENCE), stopping)
    answer.set()


def _times_out() -> None:
    raise TimeoutError("of the question")
