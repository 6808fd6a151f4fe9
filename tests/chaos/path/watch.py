"""Observes everything from outside during a round: a follower must never be ahead of what it follows.

An observation without an answer is dropped: servers are away much of the time. Kafka is asked through consumers that
join no group: librdkafka aborts a process whose admin client loses a group's coordinator during a request (its issue
4605).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition

from infra.kafka import clients as kafka
from infra.state.positions import Positions
from schemas.errors import HeadraceError
from schemas.topics import group_name, positions_topic
from tests.chaos.forked import Command
from tests.chaos.path.histories import MIGRATIONS, Lead, StatusReport
from tests.chaos.path.world import World

_PAUSE: Final = 0.2
_STATUS_PAUSE: Final = 6.0
_ANSWER_SECONDS: Final = 5.0
_STATUS_SECONDS: Final = 60.0
_LEAVE_SECONDS: Final = 2.0
_FINISHED: Final = ("caught_up", "complete")
_PASSING: Final = (psycopg.Error, KafkaException, HeadraceError, TimeoutError)


class Watch:
    """Observes until `stop`; `looks` counts the answered observations, by what was observed."""

    def __init__(self, world: World) -> None:
        self.leads: list[Lead] = []
        """Only the broken ones."""
        self.reports: list[StatusReport] = []
        self.looks = {"offsets": 0, "slot": 0, "status": 0}
        self.progress: list[tuple[float, int]] = []
        """When the ledgers were seen to have reached this many events in all."""
        self._world = world
        self._settings = world.settings
        self._over = threading.Event()
        looks: tuple[tuple[Callable[[], None], float], ...] = (
            (self._look_at_offsets, _PAUSE),
            (self._look_at_slot, _PAUSE),
            (self._look_at_status, _STATUS_PAUSE),
        )
        self._threads = [threading.Thread(target=self._run, args=look, daemon=True) for look in looks]
        for thread in self._threads:
            thread.start()

    def reached(self) -> int:
        """Return how many events the ledgers have passed in all, as far as observed."""
        return self.progress[-1][1] if self.progress else 0

    def stop(self) -> None:
        """Stop observing."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, look: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            with contextlib.suppress(*_PASSING):
                look()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._world.dsn, autocommit=True, application_name="watch", connect_timeout=3)

    def _look_at_offsets(self) -> None:
        with self._connect() as connection, self.groups() as groups:
            while not self._over.wait(_PAUSE):
                before = {name: committed(client, self._world.topic) for name, client in groups.items()}
                ledger: dict[tuple[str, int], int] = {}
                for name, partition, offset in connection.execute(
                    "SELECT migration, partition, next_offset FROM headrace.progress"
                ):
                    ledger[name, partition] = offset
                self.progress.append((time.time(), sum(ledger.values())))
                self.looks["offsets"] += 1
                for name, offsets in before.items():
                    for partition, offset in offsets.items():
                        if offset > ledger.get((name, partition), 0):
                            self.leads.append(Lead("Kafka's offset", offset, ledger.get((name, partition), 0)))

    @contextlib.contextmanager
    def groups(self) -> Iterator[dict[str, Consumer]]:
        """Yield migration → a consumer with its group id, which does not join the group."""
        settings = self._settings
        with kafka.translated(settings.kafka):
            clients = {name: kafka.consumer(settings.kafka, group_name(settings.prefix, name)) for name in MIGRATIONS}
            try:
                yield clients
            finally:
                for client in clients.values():
                    kafka.leave(client, _LEAVE_SECONDS)

    def _look_at_slot(self) -> None:
        positions = Positions(self._settings.prefix, self._settings.kafka)
        place = TopicPartition(positions_topic(self._settings.prefix), 0)
        slot = f"{self._settings.prefix}_main".lower()
        with (
            self._connect() as connection,
            kafka.reading(self._settings.kafka, isolation_level="read_uncommitted") as written,
            kafka.reading(self._settings.kafka) as shown,
        ):
            while not self._over.wait(_PAUSE):
                row = connection.execute(
                    "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = %s", (slot,)
                ).fetchone()
                end = _end(written, place)
                if row is None or row[0] is None:
                    continue
                # A commit is acknowledged a moment before all readers can see it.
                while _end(shown, place) < end and not self._over.wait(0.02):
                    pass
                state = positions.sources().get("main")
                if state is None or state.stream is None or self._over.is_set():
                    continue
                self.looks["slot"] += 1
                if int(row[0]) > state.stream.confirmed_lsn:
                    self.leads.append(Lead("the slot", int(row[0]), state.stream.confirmed_lsn))

    def _look_at_status(self) -> None:
        asked = Command(
            self._world.logs,
            ("status", "--json", "--config", str(self._world.config)),
            prepare=self._world.preparing(self._world.hub),
        )
        if asked.wait(_STATUS_SECONDS) != 0:
            asked.send(signal.SIGKILL)
            return
        now = time.time()
        self.looks["status"] += 1
        for one in asked.json()["migrations"]:
            if one["name"] in MIGRATIONS and one.get("state") in _FINISHED:
                ends = {each["partition"]: each["end_offset"] for each in one["partitions"]}
                self.reports.append(StatusReport(one["name"], ends, now))


def committed(client: Consumer, topic: str) -> dict[int, int]:
    """Return partition → the offset that the client's group has committed in Kafka."""
    partitions = client.list_topics(topic, timeout=_ANSWER_SECONDS).topics[topic].partitions
    places = client.committed([TopicPartition(topic, number) for number in partitions], timeout=_ANSWER_SECONDS)
    return {place.partition: place.offset for place in places if place.offset >= 0}


def _end(client: Consumer, place: TopicPartition) -> int:
    return int(client.get_watermark_offsets(place, timeout=_ANSWER_SECONDS)[1])
