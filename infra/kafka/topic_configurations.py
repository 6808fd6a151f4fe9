"""Reads topics' configurations, a thousand of which take Kafka most of a second."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]  # exported, but not by name

from infra.kafka import clients
from infra.kafka.topics import BATCH_BYTES, SETTLING
from infra.settings.model import KafkaSettings

_TIMEOUT: Final = 30.0
_UNREADABLE: Final = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}


class TopicConfigurations:
    """The configurations of topics as they were when each was first asked for."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._known: dict[str, dict[str, str] | None] = {}

    def of(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """Return topic → its configuration, including the broker's defaults.

        A topic that does not exist, or whose configuration may not be read, is left out.
        """
        if missing := [name for name in names if name not in self._known]:
            self._known |= dict.fromkeys(missing)
            self._known |= self._read(missing)
        return {name: known for name in names if (known := self._known[name]) is not None}

    def largest_record(self, topic: str) -> int:
        """Return the maximum size of a record, in bytes, by the limits of topic and clients.

        A topic whose configuration may not be read counts as without its own limit.
        """
        limit = clients.record_bytes(self._settings)
        if (known := self.of([topic]).get(topic)) is None:
            return limit
        return min(limit, int(known["max.message.bytes"]) - BATCH_BYTES)

    def _read(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        with clients.translated(self._settings):
            client = clients.admin(self._settings)  # kept in a variable: its futures end with it
            resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
            found: dict[str, dict[str, str]] = {}
            for resource, future in client.describe_configs(resources, request_timeout=_TIMEOUT).items():
                try:
                    entries = future.result(_TIMEOUT)
                except KafkaException as error:
                    if error.args[0].code() not in _UNREADABLE | SETTLING:
                        raise
                else:
                    found[resource.name] = {name: entry.value for name, entry in entries.items()}
            return found
