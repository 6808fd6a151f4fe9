"""Reads a producer's records many times per round, with one client, where headrace creates one each time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra.kafka import clients
from infra.kafka.clients import READERS
from infra.kafka.kafka_errors import MEANINGS, Course
from infra.kafka.topics import is_there
from infra.settings.model import KafkaSettings
from infra.state.positions import Positions
from schemas.topics import positions_topic

_SECONDS: Final = 20.0
_PATIENCE: Final = 120.0


class Recorded(Positions):
    """Like `Positions`; has to be closed."""

    def __init__(self, prefix: str, settings: KafkaSettings) -> None:
        super().__init__(prefix, settings)
        self._kept = self._log = _Kept(settings, positions_topic(prefix))  # type: ignore[assignment]

    def close(self) -> None:
        self._kept.close()


class _Kept:
    """Like LogReader, with one client for all reads."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._client: Consumer | None = None
        self._next = 0

    def read(self) -> Iterator[Message]:
        """Yield every committed record from the last one read up to the current end."""
        place = TopicPartition(self._topic, 0, OFFSET_BEGINNING)
        client = self._client
        if client is None:
            client = self._client = clients.consumer(
                self._settings, READERS, enable_partition_eof=True, fetch_wait_max_ms=100
            )
            if not is_there(client.list_topics(self._topic, timeout=_SECONDS).topics.get(self._topic)):
                self.close()
                return
            client.assign([place])
        end = self._end(client, place)
        while self._next < end:
            message = client.poll(_SECONDS)
            assert message is not None, "Kafka does not answer"
            error = message.error()
            if error is None:
                self._next = (message.offset() or 0) + 1
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                # Also moves past transaction markers.
                self._next = message.offset() or 0
            else:
                raise KafkaException(error)

    def _end(self, client: Consumer, place: TopicPartition) -> int:
        """Return the topic's end; an overloaded broker may lose its connections."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return int(client.get_watermark_offsets(place, timeout=_SECONDS)[1])
            except KafkaException as error:
                if MEANINGS[error.args[0].code()].course is not Course.WAITED or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            clients.leave(client, _SECONDS)
