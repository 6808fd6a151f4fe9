"""The readiness of a producer, from sessions that a fake opens, and from a slot that another process reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.kafka import clients
from infra.service.service_state import ServiceState
from infra.settings.model import Settings
from producers.session import acquire, opening, service
from producers.session.handover import HandoverAwaited
from producers.source import slots
from producers.stream.connection import SlotInUse
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, Unavailable
from schemas.positions import Lsn
from tests.producers.sources import settings_for


class Stop(threading.Event):
    """Notes what the service lacks whenever it waits."""

    def __init__(self, state: ServiceState) -> None:
        super().__init__()
        self.lacked: list[dict[str, str]] = []
        self._state = state

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        self.lacked.append(dict(self._state.missing))
        return self.is_set()


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> ServiceState:
    made = ServiceState()
    monkeypatch.setattr(service, "THIS", made)
    monkeypatch.setattr(acquire, "THIS", made)
    return made


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(clients, "ensure_reachable", lambda *_: None)
    return settings_for("nowhere:1", "p", "host=nowhere connect_timeout=1", "public.t")


class Sessions:
    """Opens one session after the other; each ends with the error of a server, the last with a stop."""

    def __init__(self, state: ServiceState, stop: Stop, errors: list[Unavailable]) -> None:
        self.ready: list[bool] = []
        self._state = state
        self._stop = stop
        self._errors = errors

    @contextmanager
    def open(self, _start: object) -> Iterator[Any]:
        yield self

    def work(self) -> None:
        self.ready.append(not self._state.missing)
        if self._errors:
            raise self._errors.pop(0)
        self._stop.set()


def test_producer_is_ready_while_a_session_works_and_names_the_server_that_ended_it(
    settings: Settings, state: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(state)
    errors = [BrokerUnavailable("no broker"), DatabaseUnavailable("no database"), HandoverAwaited("not given")]
    sessions = Sessions(state, stop, list(errors))
    monkeypatch.setattr(opening, "open_session", sessions.open)
    monkeypatch.setattr(service, "slot_monitor_of", lambda *_: SlotMonitorOfNothing())
    service.produce(settings, "main", stop)
    assert stop.lacked == [{"kafka": "no broker"}, {"database": "no database"}, {"handover": "not given"}]
    assert sessions.ready == [True] * 4


class SlotMonitorOfNothing:
    def look_over_new_connection(self, _dsn: str) -> None:
        """Sees nothing."""


def test_slot_that_another_process_reads_is_named(state: ServiceState, monkeypatch: pytest.MonkeyPatch) -> None:
    state.working()
    held = [SlotInUse("headrace_main", 12), SlotInUse("headrace_main", 13)]

    class Stream:
        def __init__(self, *_: object) -> None:
            if held:
                raise held.pop(0)

    class Connection:
        def execute(self, *_: object) -> None:
            """Ends no process."""

    monkeypatch.setattr(acquire, "ReplicationStream", Stream)
    monkeypatch.setattr(acquire, "stream_encoding", lambda _: "UTF8")
    monkeypatch.setattr(slots, "ensure_failover", lambda *_: False)
    stop, connection = Stop(state), Connection()
    taken: Any = acquire.take_slot(connection, "", "main", "headrace_main", "headrace", Lsn(1), stop)  # type: ignore[arg-type]
    assert isinstance(taken, Stream)
    assert [each.keys() for each in stop.lacked] == [{"slot"}] * 2
    assert "12" in stop.lacked[0]["slot"]
    assert "13" in stop.lacked[1]["slot"]
