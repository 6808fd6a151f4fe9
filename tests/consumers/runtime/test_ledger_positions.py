"""Kafka's offsets follow the ledger, and a crash of the database's server never leaves them ahead of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition

from consumers.ledger.progress import Place
from consumers.ledger.target import flush
from consumers.runtime.ledger_positions import LedgerPositions
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.kafka.topics import end_offsets
from infra.settings.file import load_settings
from infra.settings.model import KafkaSettings, Settings
from schemas.positions import Offset
from schemas.topics import group_name
from tests.consumers.container_repositories import (
    TABLE,
    TOO_MANY_TAGS,
    Feed,
    fill,
    start_member,
    write_settings,
    written,
)
from tests.producers.servers import own_server

WRITERS = ("walwriter", "background writer", "checkpointer")
"""The server's processes that write WAL which no session waits for."""


def committed(settings: Settings, topic: str, partitions: Mapping[int, int]) -> dict[int, int]:
    """Return partition → the offset that Kafka has of the migration's group; 0 where it has none."""
    asking = clients.consumer(settings.kafka, group_name(settings.prefix, "skip_resets"))
    try:
        places = asking.committed([TopicPartition(topic, number) for number in partitions], timeout=PATIENCE)
    finally:
        asking.close()
    return {place.partition: max(0, place.offset) for place in places}


def frozen_at_rest(connection: psycopg.Connection[Any], writer: str) -> bool:
    """Freeze one of the server's processes, and let it go again where it was at work: it may hold a lock."""
    found = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = %s", (writer,)).fetchone()
    assert found is not None
    os.kill(found[0], signal.SIGSTOP)
    at_rest = "SELECT coalesce(wait_event_type = 'Activity', false) FROM pg_stat_activity WHERE pid = %s"
    if connection.execute(at_rest, found).fetchone() == (True,):
        return True
    os.kill(found[0], signal.SIGCONT)
    return False


class Fakes:
    """The group and the target; `meanwhile` is called while the ledger is flushed."""

    def __init__(self, meanwhile: Callable[[Fakes], None]) -> None:
        self.positions = {Place("t", 0): Offset(7)}
        self.sessions = 0
        self.did: list[str] = []
        self._meanwhile = meanwhile

    def ask(self, question: object) -> None:
        assert question is flush
        self.did.append("flush")
        self._meanwhile(self)

    def commit(self) -> None:
        self.did.append("commit")


def ledger_positions(fakes: Fakes) -> LedgerPositions:
    this: Any = fakes
    return LedgerPositions(KafkaSettings(), this, this, this, this, threading.Event())


def lose_the_session(fakes: Fakes) -> None:
    fakes.sessions += 1


def be_assigned(fakes: Fakes) -> None:
    """As a rebalance does that comes while a lost database is waited for."""
    fakes.positions = {Place("t", 1): Offset(9)}


def test_offsets_follow_a_flush_once_for_each_progress() -> None:
    fakes = Fakes(lambda _: None)
    positions = ledger_positions(fakes)
    positions.follow()
    positions.follow()
    assert fakes.did == ["flush", "commit"]
    fakes.positions[Place("t", 0)] = Offset(8)
    positions.follow()
    assert fakes.did == ["flush", "commit"] * 2


@pytest.mark.parametrize("meanwhile", [lose_the_session, be_assigned])
def test_offsets_do_not_follow_what_the_flush_may_not_have_covered(meanwhile: Callable[[Fakes], None]) -> None:
    fakes = Fakes(meanwhile)
    ledger_positions(fakes).follow()
    assert fakes.did == ["flush"]


@pytest.mark.long
@pytest.mark.stack
def test_offsets_in_kafka_are_not_ahead_of_a_ledger_that_lost_its_last_commits(
    bootstrap_servers: str, tmp_path: Path, prefix: str
) -> None:
    rows = dict.fromkeys(range(100), TOO_MANY_TAGS)
    with own_server() as own:
        dsn = own.create_database("crash")
        config = write_settings(
            tmp_path / "own.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": bootstrap_servers},
                "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}},
            },
        )
        settings = load_settings(config)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLE)
            fill(connection, rows)
            for writer in WRITERS:
                until(partial(frozen_at_rest, connection, writer), f"the {writer} is frozen")
            feed = Feed(settings)
            feed.snapshot(rows)
            ends = end_offsets(settings.kafka, feed.topic)
            member = start_member(config)
            try:
                until(lambda: sorted(written(connection)) == list(rows), "all rows are reset")
                until(lambda: committed(settings, feed.topic, ends) == ends, "Kafka's offsets follow")
            finally:
                member.kill()
                member.communicate()
        own.kill()
        own.start()
        with psycopg.connect(dsn, autocommit=True) as connection:
            places = connection.execute("SELECT partition, next_offset FROM headrace.progress").fetchall()
            assert sorted(written(connection)) == list(rows)
        assert dict(places) == ends == committed(settings, feed.topic, ends)
