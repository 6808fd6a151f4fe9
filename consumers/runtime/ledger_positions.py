"""Positions a consumer's group from the ledger in the target database, in the migration's current run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from consumers.delivery.group import Group
from consumers.delivery.topic_identity import recreated, topic_ids
from consumers.ledger.progress import Entry, Ledger, Place
from consumers.ledger.target import Connection, Target, flush
from consumers.planning.planner import Planner
from infra.kafka import clients
from infra.settings.model import KafkaSettings
from schemas.positions import Offset


class LedgerPositions:
    """The positions of one consumer; also passes the run's selection to the planner."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: Group,
        ledger: Ledger,
        target: Target,
        planner: Planner,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._group = group
        self._ledger = ledger
        self._target = target
        self._planner = planner
        self._stopping = stopping
        self._session = 0
        """The number of the target session in which the group's positions were read."""
        self._followed: dict[Place, Offset] = {}
        """The offsets last committed to Kafka."""
        self.run = 0
        """The current run, 0 before `begin`."""

    @property
    def current(self) -> bool:
        """Whether the group's positions were read in the target's current session."""
        return self._target.sessions == self._session

    def begin(self, connection: Connection) -> None:
        """Switch to the current run and its selection."""
        run = self._ledger.begin(connection)
        if run != self.run:
            self._planner.limit(self._ledger.selection(connection, run))
            self.run = run

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Entry]:
        """Return the ledger entries of `places`; see group.Assigned."""
        if not places:
            return {}

        def opened(connection: Connection) -> tuple[dict[str, str], dict[Place, Entry]]:
            topics = [place.topic for place in places]
            ids = clients.ask(lambda: topic_ids(self._settings, topics), self._stopping)
            self.begin(connection)
            wanted = {place: ids[place.topic] for place in places}
            return ids, self._ledger.open(connection, self.run, wanted)

        ids, entries = self._target.ask(opened)
        for place, entry in entries.items():
            if entry.topic_id != ids[place.topic]:
                raise recreated(place.topic, entry.topic_id, ids[place.topic])
        return entries

    def read_again(self) -> None:
        """Continue from the ledger, in the current run: records read but not applied arrive again."""
        while not self._stopping.is_set():
            entries = self.assigned(list(self._group.positions))
            session = self._target.sessions
            if self._group.reposition(entries):
                self._session = session
                return

    def follow(self) -> None:
        """Commit the positions to Kafka after making the ledger durable: a crash must not leave Kafka's offsets ahead.

        They serve tools that show them; no consumer reads from them.
        """
        positions = dict(self._group.positions)
        if positions == self._followed or not self.current:
            return
        self._target.ask(flush)
        # Meanwhile partitions may have come and gone, or commits been lost with the session: flushed again next time.
        if self.current and self._group.positions == positions:
            self._followed = positions
            self._group.commit()
