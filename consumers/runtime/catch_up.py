"""What "caught up" means: the whole group's ledger has reached the ends that the topics had when a member started."""

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
    """The ends of some topics as they are now.

    A transaction whose commit the broker does not show yet counts: who has just seen a producer end may rely on it. One
    that is left open by a producer that died is waited for until the broker has given it up.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        self._ends = {
            Place(topic, partition): Offset(end)
            for topic in topics
            for partition, end in written_offsets(settings, topic).items()
        }
        self._next_check = 0.0

    def reached(self, positions: Mapping[Place, Offset], ledger: Callable[[], Mapping[Place, Entry]]) -> bool:
        """Return whether a member's `positions` and then the ledger, asked now and then, are at the ends or past."""
        if any(position < self._ends.get(place, 0) for place, position in positions.items()):
            return False
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + _CHECK_SECONDS
        entries = ledger()
        return all(place in entries and entries[place].next_offset >= end for place, end in self._ends.items() if end)
