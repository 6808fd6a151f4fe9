"""A producer and a consumer as processes on real servers: their health, while a server is away, and their metrics."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from consumers.testing.waiting import PATIENCE, until
from infra.stack import Stack
from tests.conftest import Database, start_stack
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS
from tests.infra.service.test_service_endpoints import free_port

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "infra" / "observability" / "dashboard.json"
RULES = ROOT / "infra" / "observability" / "rules.yml"


class Service:
    """A headrace command with its endpoints; its log goes to `log`."""

    def __init__(self, config: Path, *words: str) -> None:
        self.port = free_port()
        self.log = config.with_name(f"{'-'.join(words)}-{self.port}.log")
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headrace", *words, "--config", str(config)],
                cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "HEADRACE_METRICS__PORT": str(self.port)},
            )  # fmt: skip

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and text; 0 while the port is not open."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            assert self._process.poll() is None, self.log.read_text()
            return 0, ""

    def lacks(self) -> set[str] | None:
        """Return what it lacks by its own account, empty if it is ready; None while it does not answer."""
        status, text = self.ask("/readyz")
        found: Mapping[str, Any] = json.loads(text) if text else {}
        assert status == (0 if not found else 200 if found["ready"] else 503)
        return set(found["reasons"]) if found else None

    def sample(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return sum(map(float, found))

    def end(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()


@pytest.fixture
def start(tmp_path: Path, prefix: str) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def service(stack: Stack, dsn: str, *words: str) -> Service:
        config = tmp_path / "headrace.toml"
        config.write_text(
            f'prefix = "{prefix}"\n[kafka]\nbootstrap_servers = "{stack.endpoints.bootstrap_servers}"\n'
            f'[databases.main]\ndsn = "{dsn}"\ngitlab_schemas = ["gitlab_main"]\nallow_unlimited_wal = true\n'
            'tables = ["public.container_repositories"]\n[migrations.skip_resets]\ncontinuous = true\n'
        )
        started.append(Service(config, *words))
        return started[-1]

    yield service
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            each.end()


ROWS = f"""
    INSERT INTO public.container_repositories (id, project_id, name, migration_state, migration_skipped_reason)
    SELECT i, 1, 'x', '{TOO_MANY_TAGS[0]}', {TOO_MANY_TAGS[1]} FROM generate_series(%s::int, %s) i
"""


def test_each_metric_of_dashboard_and_rules_is_exported(
    stack: Stack, database: Database, start: Callable[..., Service]
) -> None:
    connection = database.connect()
    connection.execute(TABLE)
    connection.execute(ROWS, (1, 100))
    producer = start(stack, database.dsn, "produce", "main")
    until(lambda: producer.lacks() == set(), "the producer is ready")
    consumer = start(stack, database.dsn, "consume", "skip_resets")
    until(lambda: consumer.lacks() == set(), "the consumer is ready")
    until(lambda: consumer.sample("headrace_applied_rows_total") == 100, "the snapshot's rows are changed")
    connection.execute(ROWS, (101, 120))
    until(lambda: consumer.sample("headrace_applied_rows_total") == 120, "the stream's rows are changed")
    until(lambda: consumer.sample("headrace_effect_latency_seconds_count") == 20, "the stream's rows have a latency")
    until(lambda: producer.sample("headrace_publish_latency_seconds_count") >= 20, "events have a latency")
    until(lambda: consumer.sample("headrace_migration_consumers") == 1, "the ledger is exported")
    caught_up = r'headrace_migration_state{migration="skip_resets",state="caught_up"} 1.0'
    until(lambda: caught_up in consumer.ask("/metrics")[1], "the state is exported")
    assert consumer.sample("headrace_consumer_lag_events") == 0
    assert "headrace_migration_remaining_rows{" in consumer.ask("/metrics")[1]
    assert producer.sample("headrace_snapshot_chunks_done") >= 1
    assert producer.sample("headrace_chunk_seconds_count") >= 1
    exported = {
        name
        for service in (producer, consumer)
        for name in re.findall(r"^# TYPE (\w+) ", service.ask("/metrics")[1], re.MULTILINE)
    }
    used = re.findall(r"\b(?:headrace|process)_\w+", DASHBOARD.read_text() + RULES.read_text())
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in used} - exported == set()
    assert (producer.end(), consumer.end()) == (0, 0)


@pytest.mark.stack
@pytest.mark.long
def test_services_are_not_ready_while_a_server_is_away(start: Callable[..., Service], prefix: str) -> None:
    with start_stack() as own:
        dsn = own.postgres.create_database("away")
        with own.postgres.connect("away") as connection:
            connection.execute(TABLE)
        services = [start(own, dsn, *words) for words in (("produce", "main"), ("consume", "skip_resets"))]

        def all_lack(expected: set[str]) -> Callable[[], bool]:
            return lambda: all(service.lacks() == expected for service in services)

        until(all_lack(set()), "both are ready")
        for server, name in ((own.kafka, "kafka"), (own.postgres, "database")):
            server.stop()
            until(all_lack({name}), f"both lack {name}")
            assert [service.ask("/healthz")[0] for service in services] == [200, 200]
            server.start()
            until(all_lack(set()), "both are ready again")
        assert [service.end() for service in services] == [0, 0]
