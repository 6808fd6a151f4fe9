"""Looks at everything from beside while a round is played: what follows must never be ahead of what it follows.

A look that gets no answer is none: servers are away for much of the time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from consumers.group import group_name
from consumers.status import gather
from infra import kafka
from infra.positions import Positions
from infra.settings import Settings
from schemas.errors import HeadraceError
from schemas.topics import positions_topic
from tests.chaos.path.histories import MIGRATIONS, Lead, Said

_PAUSE: Final = 0.2
_STATUS_PAUSE: Final = 2.0
_ANSWER_SECONDS: Final = 5.0
_FINISHED: Final = ("caught_up", "complete")
_PASSING: Final = (psycopg.Error, KafkaException, HeadraceError, TimeoutError)


class Watch:
    """Looks until `stop`; `looks` counts those that got an answer, by what was looked at."""

    def __init__(self, settings: Settings, dsn: str, topic: str, slot: str) -> None:
        self.leads: list[Lead] = []
        """Only those that are broken."""
        self.said: list[Said] = []
        self.looks = {"offsets": 0, "slot": 0, "status": 0}
        self.progress: list[tuple[float, int]] = []
        """When the ledgers were seen to have reached so many events in all."""
        self._settings = settings
        self._dsn = dsn
        self._topic = topic
        self._slot = slot
        self._over = threading.Event()
        looks: tuple[tuple[Callable[[], None], float], ...] = (
            (self._look_at_offsets, _PAUSE),
            (self._look_at_slot, _PAUSE),
            (self._look_at_status, _STATUS_PAUSE),
        )
        self._threads = [threading.Thread(target=self._run, args=look, daemon=True) for look in looks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, look: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            with contextlib.suppress(*_PASSING):
                look()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._dsn, autocommit=True, application_name="watch", connect_timeout=3)

    def _look_at_offsets(self) -> None:
        client = kafka.admin(self._settings.kafka)
        with self._connect() as connection:
            while not self._over.wait(_PAUSE):
                before = {name: committed(client, self._settings, name, self._topic) for name in MIGRATIONS}
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

    def _look_at_slot(self) -> None:
        positions = Positions(self._settings.prefix, self._settings.kafka)
        client = kafka.admin(self._settings.kafka)
        place = TopicPartition(positions_topic(self._settings.prefix), 0)
        with self._connect() as connection:
            while not self._over.wait(_PAUSE):
                row = connection.execute(
                    "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
                    (self._slot,),
                ).fetchone()
                written = _end(client, place, IsolationLevel.READ_UNCOMMITTED)
                if row is None or row[0] is None or not _shown(client, place, written, self._over):
                    continue
                state = positions.sources().get("main")
                if state is None or state.stream is None:
                    continue
                self.looks["slot"] += 1
                if int(row[0]) > state.stream.confirmed_lsn:
                    self.leads.append(Lead("the slot", int(row[0]), state.stream.confirmed_lsn))

    def _look_at_status(self) -> None:
        document = gather(self._settings)
        now = time.time()
        self.looks["status"] += 1
        for one in document["migrations"]:
            if one["name"] in MIGRATIONS and one.get("state") in _FINISHED:
                ends = {each["partition"]: each["end_offset"] for each in one["partitions"]}
                self.said.append(Said(one["name"], ends, now))


def committed(client: AdminClient, settings: Settings, migration: str, topic: str) -> dict[int, int]:
    """Return partition → the offset that the migration's group has committed in Kafka."""
    group = group_name(settings.prefix, migration)
    asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=_ANSWER_SECONDS)
    found = asked[group].result(_ANSWER_SECONDS).topic_partitions
    return {place.partition: place.offset for place in found if place.topic == topic and place.offset >= 0}


def _end(client: AdminClient, place: TopicPartition, level: IsolationLevel) -> int:
    latest = {place: OffsetSpec.latest()}  # type: ignore[no-untyped-call]
    answers = client.list_offsets(latest, isolation_level=level, request_timeout=_ANSWER_SECONDS)
    return int(answers[place].result(_ANSWER_SECONDS).offset)


def _shown(client: AdminClient, place: TopicPartition, written: int, over: threading.Event) -> bool:
    """Wait until all can read what was written up to an offset; return whether they can."""
    while not over.is_set():
        if _end(client, place, IsolationLevel.READ_COMMITTED) >= written:
            return True
        over.wait(0.02)
    return False
