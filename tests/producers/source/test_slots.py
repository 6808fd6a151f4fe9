"""Slots and heartbeats on a real server."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from producers.source import slots
from producers.stream.connection import ReplicationStream
from schemas.errors import Refused, UsageError
from tests.conftest import Database
from tests.producers.replicas import PUBLICATION, prepare

pytestmark = pytest.mark.stack

HOSTILE = ["", "Upper", "a-b", "a b", "a'b", 'a"b', "a;b", "ä", "a\n", "a\0b", "a" * 64]


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


@pytest.fixture
def slot() -> str:
    """A unique name: slots belong to the whole server."""
    return f"s_{uuid.uuid4().hex}"


def test_slot_is_created_read_and_dropped(connection: psycopg.Connection[Any], database: Database, slot: str) -> None:
    assert slots.read(connection, slot) is None
    start = slots.create(connection, slot, failover=True)
    state = slots.read(connection, slot)
    assert state is not None
    assert (state.slot, state.plugin, state.database) == (slot, "pgoutput", database.name)
    assert state.confirmed_flush == start
    assert state.restart_lsn is not None
    assert state.restart_lsn <= start
    assert (state.active_pid, state.invalidation_reason, state.wal_status) == (None, None, "reserved")
    assert (state.failover, state.synced, state.lost) == (True, False, False)
    assert slots.drop(connection, slot)
    assert slots.read(connection, slot) is None
    assert not slots.drop(connection, slot)


def test_slot_is_created_without_failover(connection: psycopg.Connection[Any], slot: str) -> None:
    slots.create(connection, slot, failover=False)
    state = slots.read(connection, slot)
    assert state is not None
    assert not state.failover


def test_a_slot_that_exists_is_not_replaced(connection: psycopg.Connection[Any], slot: str) -> None:
    start = slots.create(connection, slot, failover=False)
    with pytest.raises(slots.SlotExists, match=f"slot {slot} already exists"):
        slots.create(connection, slot, failover=False)
    state = slots.read(connection, slot)
    assert state is not None
    assert state.confirmed_flush == start


def test_a_slot_that_is_being_read_is_not_dropped(
    connection: psycopg.Connection[Any], database: Database, slot: str
) -> None:
    start = prepare(connection, slot)
    with ReplicationStream(database.dsn, slot, PUBLICATION, start):
        state = slots.read(connection, slot)
        assert state is not None
        assert state.active_pid is not None
        with pytest.raises(Refused, match=f"slot {slot} is being read; stop its producer first"):
            slots.drop(connection, slot)


@pytest.mark.parametrize("name", HOSTILE)
def test_invalid_slot_name_is_refused(connection: psycopg.Connection[Any], name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid slot name"):
        slots.create(connection, name, failover=False)


@pytest.mark.parametrize("name", ["a" * 63, "0", "_"])
def test_valid_slot_names_are_accepted(name: str) -> None:
    assert slots.check_name(name) == name


@pytest.mark.parametrize("name", ["%", "a'; SELECT 1; --", "a" * 64])
def test_reading_or_dropping_unknown_slot_finds_nothing(connection: psycopg.Connection[Any], name: str) -> None:
    assert slots.read(connection, name) is None
    assert not slots.drop(connection, name)
