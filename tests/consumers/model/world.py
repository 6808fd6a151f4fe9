"""The model's world: databases, topic, processes, the random source, and the invariants."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from consumers.ledger.progress import Place
from schemas.errors import HeadraceError
from tests.consumers.model.target import ModelServer, Transaction
from tests.consumers.model.topic import Event, Topic, encode


class Killed(BaseException):
    """The process is gone, at this step."""


class Stuck(BaseException):
    """It waits for a lock: it stops, and retries later."""


Failure: Final = (psycopg.Error, HeadraceError, Killed, Stuck)
"""What ends a process or its current step."""


@dataclass
class World:
    """All of it: databases, topic, consumers, and the random source."""

    draw: random.Random
    without: frozenset[str] = frozenset()
    quiet: bool = False
    depth: int = 0
    standby_away: bool = False
    events: dict[int, Event] = field(default_factory=dict)
    poison: set[int] = field(default_factory=set)
    kept: dict[tuple[Place, int, int], tuple[int, bytes]] = field(default_factory=dict)
    """The topic of dead letters: partition, offset, run → event."""
    consumers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.active = "first"
        self.servers = {"first": ModelServer("first")}
        self.topic = Topic(1)
        self.topics = {"1": self.topic}
        self.published = 1
        self.act: Any = lambda: None

    @property
    def server(self) -> ModelServer:
        """The one that owns the gitlab schema."""
        return self.servers[self.active]

    def run_in_key(self, run: int) -> int:
        return 0 if "run in the key of a dead letter" in self.without else run

    def step(self) -> None:
        """Between two steps of a process, others act or it is killed."""
        if self.quiet:
            return
        if self.draw.random() < 0.004:
            raise Killed
        if self.depth < 2 and self.draw.random() < 0.12:
            self.depth += 1
            try:
                self.act()
            finally:
                self.depth -= 1

    # The source.

    def publish(self, count: int) -> None:
        """Publish the next transactions that the standby has; a Kafka transaction ends with a marker."""
        wal = self.server.wal[: self.server.replicated]
        ahead = wal[self.published : self.published + count]
        self.published += len(ahead)
        for tx in ahead:
            for event in (each for each in self.events.values() if each.transaction is tx):
                self.append(event)
        if ahead:
            self.topic.mark()

    def append(self, event: Event, *, read: bool = False) -> None:
        self.topic.append(event, encode(event, self.active, len(self.server.wal), read=read))

    # Invariants.

    def require_right(self, server: ModelServer, tx: Transaction) -> None:
        """Fail unless the transaction may be committed."""
        assert tx.fenced is not None
        control, (database, run) = server.state["control"], tx.fenced
        assert control["name"] == control["owner"] == database, f"written in {database}, which does not own the schema"
        assert not control["paused"], "written while paused"
        assert not tx.blind, f"events {tx.blind} are applied before their transactions are visible"
        moved = [(table, key) for table, key, _ in tx.writes if table == "ledger"]
        assert not moved or control["run"] == run, f"run {run} continues in run {control['run']}"
        for key in (key for table, key, _ in tx.writes if table == "applied"):
            assert key not in server.state["applied"], f"{key} (run, event) is applied twice"
        for place, expected, next_offset in tx.moves:
            recorded, topic = server.state["ledger"][(run, place)]
            assert expected == recorded < next_offset, f"{place} goes from {recorded} to {next_offset}"
            for at, record in self.topics[topic].records[place].items():
                event = record.event
                if expected <= at < next_offset and event is not None and event.state in ("wanted", "nonsense"):
                    settled = event.number in tx.applied or (place, at) in tx.dead_letters
                    assert settled, f"{place} steps over event {event.number}, which is wanted"

    def require_letters(self) -> None:
        """Fail unless every open dead letter has its event."""
        for (run, place, offset), state in self.server.state["letters"].items():
            found = self.kept.get((place, offset, self.run_in_key(run)))
            assert state != "open" or (found is not None and found[0] == run), (
                f"the event of dead letter {place}@{offset} of run {run} is gone"
            )
