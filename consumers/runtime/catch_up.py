"""Detects when the group has caught up: the ledger has reached the topics' ends as of a consumer's start."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from consumers.ledger.progress import Entry, Place
from infra.kafka.topics import written_offsets
from infra.settings.model import KafkaSettings
from schemas.positions import Offset

_CHECK_SECONDS: Final = 0.25


class Ends:
    """The current ends of some topics.

    They include transactions that the broker does not show as committed yet, so they cover everything written by a
    producer that has exited. A transaction left open by a dead producer delays the end until the broker aborts it.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        self._ends = {
            Place(topic, partition): Offset(end)
            for topic in topics
            for partition, end in written_offsets(settings, topic).items()
        }
        self._next_check = 0.0

    def reached(self, positions: Mapping[Place, Offset], ledger: Callable[[], Mapping[Place, Entry]]) -> bool:
        """Return whether `positions`, and then the ledger, read periodically, are at or past the ends."""
        if any(position < self._ends.get(place, 0) for place, position in positions.items()):
            return False
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + _CHECK_SECONDS
        entries = ledger()
        return all(place in entries and entries[place].next_offset >= end for place, end in self._ends.items() if end)
