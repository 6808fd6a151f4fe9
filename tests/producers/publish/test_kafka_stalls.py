"""Calls that wait for Kafka are logged meanwhile and counted afterwards."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from consumers.testing.waiting import until
from infra.service import metrics
from infra.service.service_state import KAFKA, ServiceState
from producers.publish import kafka_stalls
from producers.publish.kafka_stalls import Patience, Stalls


def counted(client: str) -> float:
    """Return how many stalls Prometheus would read."""
    return next(
        sample.value
        for metric in metrics.STALLS.collect()
        for sample in metric.samples
        if sample.name == "headrace_kafka_stalls_total" and sample.labels["transactional_id"] == client
    )


def test_long_call_is_logged_while_it_waits_and_counted_once() -> None:
    with capture_logs() as told, Stalls("p.main", Patience(stall=0.05, look=0.01)) as watch:
        with watch.watching("commit a transaction"):
            until(lambda: len(told) == 1, "a warning")
        assert counted("p.main") == 1
    assert [(each["event"], each["to"], each["log_level"]) for each in told] == [
        ("waiting for Kafka", "commit a transaction", "warning"),
        ("Kafka kept the producer waiting", "commit a transaction", "warning"),
    ]
    assert 0 < told[0]["seconds"] <= told[1]["seconds"]


def test_waiting_call_is_logged_repeatedly() -> None:
    often = Patience(stall=0.05, look=0.01, again=0.05)
    with capture_logs() as told, Stalls("p.again", often) as watch, watch.watching("take records"):
        until(lambda: len(told) >= 3, "repeated warnings")


def test_quick_calls_are_not_logged_and_thread_ends() -> None:
    with capture_logs() as told, Stalls("p.quick") as watch:
        for _ in range(100):
            with watch.watching("commit a transaction"):
                pass
    assert told == []
    until(lambda: not any("p.quick" in thread.name for thread in threading.enumerate()), "its thread to end")


def test_service_is_not_ready_during_a_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ServiceState()
    state.working()
    monkeypatch.setattr(kafka_stalls, "THIS", state)
    with Stalls("p.ready", Patience(stall=0.05, look=0.01)) as watch:
        with watch.watching("commit a transaction"):
            until(lambda: dict(state.missing) == {KAFKA: "a call to commit a transaction waits"}, "it is not ready")
        assert state.missing == {}
