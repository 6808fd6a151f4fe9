"""Detects topics whose number of partitions changed: a key's records would be in two partitions, unordered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import TopicCollection

from infra.kafka import clients
from infra.settings.model import KafkaSettings
from producers.publish.table_publisher import TableFeed
from producers.source.table_keys import spread

_SECONDS: Final = 10.0


class TopicWatch:
    """Requests the topics' partitions at each check and handles the answers at the next: never waits."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._asked: dict[str, Future[Any]] = {}

    def look(self, feeds: Sequence[TableFeed]) -> None:
        """Stop the tables whose topic's number of partitions changed since the start."""
        self._act(feeds)
        names = [feed.table.topic for feed in _live(feeds)]
        if names and not self._asked:
            with clients.translated(self._settings):
                client = clients.admin(self._settings)
                self._asked = client.describe_topics(TopicCollection(names), request_timeout=_SECONDS)

    def _act(self, feeds: Iterable[TableFeed]) -> None:
        if not all(future.done() for future in self._asked.values()):
            return
        # A failed request is retried; outages of Kafka are reported elsewhere.
        found = {
            name: len(future.result().partitions) for name, future in self._asked.items() if future.exception() is None
        }
        self._asked = {}
        for feed in _live(feeds):
            now = found.get(feed.table.topic, feed.partitions)
            if now != feed.partitions:
                feed.stop(spread(feed.table.topic, feed.partitions, now))


def _live(feeds: Iterable[TableFeed]) -> list[TableFeed]:
    return [feed for feed in feeds if not feed.away and not feed.state.stopped]
