"""Metrics for Prometheus."""

import socket
import urllib.request
from contextlib import suppress

import pytest

from infra.service import metrics
from infra.settings.model import MetricsSettings
from schemas.errors import SettingsError


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
            metrics.serve(MetricsSettings(port=port))
            return port
    raise AssertionError("every port was taken")


def test_scrape_returns_the_counts() -> None:
    port = serve_somewhere()
    metrics.APPLIED.labels("of_this_test").inc(3)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert 'headrace_applied_rows_total{migration="of_this_test"} 3.0' in text
    assert "process_resident_memory_bytes" in text


def test_without_a_port_nothing_listens() -> None:
    metrics.serve(MetricsSettings())


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"cannot listen on metrics\.port {port}.*choose another"):
            metrics.serve(MetricsSettings(port=port))
