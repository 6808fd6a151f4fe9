"""Reads what Kafka knows: ends of topics, consumers of groups, and the producers' records."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from consumers.ledger.progress import Place
from consumers.operations.group_admin import members_of
from infra.kafka import topics
from infra.settings.model import Settings
from infra.state.positions import Positions, SourceState

_SOURCES_SECONDS: Final = 2.0
_WEIGHT: Final = 0.4
"""The weight of the newest rate, as consumers.pace.rates has it."""


class KafkaView:
    """The last answers of Kafka; each is replaced as a whole, so that another thread may read it."""

    def __init__(
        self,
        settings: Settings,
        names: Collection[str],
        groups: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names` are topics and `groups` consumer groups; `clock` returns seconds."""
        self._settings = settings
        self._names = sorted(names)
        self._groups = sorted(groups)
        self._clock = clock
        self._positions = Positions(settings.prefix, settings.kafka)
        self._next_sources = float("-inf")
        self._before: tuple[float, Mapping[str, int]] | None = None
        self.ends: Mapping[Place, int] = {}
        self.members: Mapping[str, list[str]] = {}
        self.sources: Mapping[str, SourceState] = {}
        self.rates: Mapping[str, float] = {}
        """Topic → events per second, smoothed."""

    def look(self) -> None:
        """Ask; raises BrokerUnavailable, and what was known stays."""
        found = topics.end_offsets_of(self._settings.kafka, self._names) if self._names else {}
        self.ends = {Place(name, each): end for name, ends in found.items() for each, end in ends.items()}
        self._measure({name: sum(ends.values()) for name, ends in found.items()})
        self.members = members_of(self._settings.kafka, self._groups) if self._groups else {}
        if self._clock() >= self._next_sources:
            self.sources = self._positions.sources()
            self._next_sources = self._clock() + _SOURCES_SECONDS

    def rest(self) -> None:
        """Forget what a rate is computed from: the next one would be that of the pause."""
        self._before = None

    def _measure(self, totals: Mapping[str, int]) -> None:
        now = self._clock()
        if self._before is not None and now > self._before[0]:
            at, counts = self._before
            newest = {name: max(0, end - counts.get(name, end)) / (now - at) for name, end in totals.items()}
            self.rates = {
                name: _WEIGHT * rate + (1 - _WEIGHT) * self.rates.get(name, rate) for name, rate in newest.items()
            }
        self._before = now, totals
