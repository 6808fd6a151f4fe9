"""A service's endpoints over real HTTP: metrics, liveness, readiness."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from infra.service import metrics, service_endpoints
from infra.service.service_endpoints import ServiceEndpoints
from infra.service.service_state import DATABASE, KAFKA, STALLED_SECONDS, THIS, ServiceState
from infra.settings.model import MetricsSettings
from schemas.errors import BrokerUnavailable, SettingsError


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Broker:
    """Kafka as a probe asks it."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.away:
            raise BrokerUnavailable("Kafka at k:9092\x1b does not answer")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> ServiceState:
    return ServiceState(clock)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def server(state: ServiceState, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceEndpoints]:
    monkeypatch.setattr(service_endpoints, "_FRESH_SECONDS", 0.0)
    with ServiceEndpoints("127.0.0.1", 0, state, {KAFKA: broker}) as made:
        answering = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        yield made
        made.shutdown()
        answering.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def asked(server: ServiceEndpoints, path: str) -> tuple[int, Any]:
    status, text = ask(server.port, path)
    return status, json.loads(text)


def test_service_is_not_ready_until_it_has_what_it_needs(server: ServiceEndpoints, state: ServiceState) -> None:
    assert asked(server, "/readyz") == (503, {"ready": False, "reasons": {"start": "the service is starting"}})
    state.working()
    assert asked(server, "/readyz") == (200, {"ready": True, "reasons": {}})


def test_what_is_missing_is_named_until_it_is_back(server: ServiceEndpoints, state: ServiceState) -> None:
    state.working()
    state.away(DATABASE, "the server\nis shutting down")
    state.away("slot", "process 12 reads it")
    reasons = {"database": "the server is shutting down", "slot": "process 12 reads it"}
    assert asked(server, "/readyz") == (503, {"ready": False, "reasons": reasons})
    assert asked(server, "/healthz")[0] == 200
    state.back(DATABASE)
    assert asked(server, "/readyz")[1]["reasons"] == {"slot": "process 12 reads it"}
    state.working()
    assert asked(server, "/readyz")[0] == 200


def test_kafka_is_asked_and_away_until_it_answers(
    server: ServiceEndpoints, state: ServiceState, broker: Broker
) -> None:
    state.working()
    broker.away = True
    assert asked(server, "/readyz") == (
        503,
        {"ready": False, "reasons": {"kafka": r"Kafka at k:9092\x1b does not answer"}},
    )
    broker.away = False
    assert asked(server, "/readyz")[0] == 200
    assert broker.asked == 2


def test_answer_of_kafka_is_kept_for_a_moment(
    server: ServiceEndpoints, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_endpoints, "_FRESH_SECONDS", 3600.0)
    assert [asked(server, "/readyz")[0] for _ in range(5)] == [503] * 5
    assert broker.asked == 1


def test_liveness_asks_no_server_and_fails_only_when_the_loop_is_stuck(
    server: ServiceEndpoints, state: ServiceState, broker: Broker, clock: Clock
) -> None:
    clock.seconds += 10 * STALLED_SECONDS
    assert asked(server, "/healthz") == (200, {"alive": True})  # its loop has not begun
    state.advance()
    clock.seconds += STALLED_SECONDS
    assert asked(server, "/healthz")[0] == 200
    clock.seconds += 1
    reason = f"the main loop has not advanced for {STALLED_SECONDS + 1:.0f} seconds"
    assert asked(server, "/healthz") == (503, {"alive": False, "reason": reason})
    state.rest()  # it waits in a start
    assert asked(server, "/healthz")[0] == 200
    state.advance()
    assert asked(server, "/healthz")[0] == 200
    assert broker.asked == 0


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/x", "/favicon.ico"])
def test_other_paths_are_not_found(server: ServiceEndpoints, path: str) -> None:
    assert ask(server.port, path)[0] == 404


def test_only_get_and_head_are_allowed(server: ServiceEndpoints) -> None:
    assert ask(server.port, "/metrics", "POST")[0] == 405
    assert ask(server.port, "/metrics", "HEAD") == (200, "")
    assert ask(server.port, "/healthz", "HEAD") == (200, "")


def test_scrape_returns_the_counts(server: ServiceEndpoints) -> None:
    metrics.APPLIED.labels("of_this_test").inc(3)
    metrics.EFFECT_LATENCY.observe("of_this_test", 0.2, 7)
    status, text = ask(server.port, "/metrics")
    assert status == 200
    assert 'headrace_applied_rows_total{migration="of_this_test"} 3.0' in text
    assert 'headrace_effect_latency_seconds_bucket{le="0.25",migration="of_this_test"} 7.0' in text
    assert "process_resident_memory_bytes" in text
    assert ask(server.port, "/metrics?name=x", Accept="application/openmetrics-text")[1].endswith("# EOF\n")


def test_readiness_is_a_metric() -> None:
    def ready() -> float:
        return next(sample.value for metric in metrics.READY.collect() for sample in metric.samples)

    serve_somewhere()
    THIS.away(KAFKA, "it does not answer")
    assert ready() == 0
    THIS.working()
    assert ready() == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve_somewhere() -> int:
    """Serve on a free port, and return it; one that another process takes in between is left to it."""
    for _ in range(20):
        port = free_port()
        with suppress(SettingsError):
            service_endpoints.serve(MetricsSettings(port=port), {})
            return port
    raise AssertionError("every port was taken")


def test_a_service_serves_on_its_port_and_names_its_build() -> None:
    port = serve_somewhere()
    text = ask(port, "/metrics")[1]
    assert "headrace_build_info{" in text
    assert 'codec="' in text


def test_without_a_port_nothing_listens() -> None:
    before = threading.active_count()
    service_endpoints.serve(MetricsSettings(), {})
    assert threading.active_count() == before


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"cannot listen on 127\.0\.0\.1 port {port}.*choose another metrics"):
            service_endpoints.serve(MetricsSettings(port=port), {})
