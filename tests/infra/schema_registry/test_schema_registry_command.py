"""`headrace schema-registry` as a process, and its mistakes of a user."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient

from consumers.testing.waiting import PATIENCE, until
from infra.cli.listening import listen_address
from infra.schema_registry.topic_registry import TopicRegistry
from infra.settings.model import KafkaSettings, Settings
from schemas.errors import UsageError
from tests.consumers.services import ROOT

SCHEMA = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "headrace", "schema-registry", *arguments]


def failed(arguments: Sequence[str]) -> tuple[int, str]:
    ended = subprocess.run(command(*arguments), cwd=ROOT, check=False, capture_output=True, text=True)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:8081", ("127.0.0.1", 8081)),
        ("registry.example:0", ("registry.example", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_address_to_listen_on_is_host_and_port(listen: str, address: tuple[str, int]) -> None:
    assert listen_address(listen) == address


@pytest.mark.parametrize(
    "listen", ["", "8081", ":8081", "127.0.0.1", "h:65536", "h:-1", "::1:80", "http://h:80", "h:8 "]
)
def test_other_text_is_no_address(listen: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        listen_address(listen)


def test_mistakes_are_reported_before_anything_is_read(tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text('[registry]\nurl = "http://127.0.0.1:1"\n')
    code, said = failed(["--config", str(config)])
    assert code == 2
    assert "registry.url is set, so schemas are in that registry and not in a topic" in said
    code, said = failed(["--listen", "nowhere", "--config", str(config)])
    assert code == 2
    assert "--listen nowhere is no address" in said


@pytest.mark.stack
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_what_producers_register_until_stopped(
    bootstrap_servers: str, prefix: str, tmp_path: Path, number: signal.Signals
) -> None:
    registry = TopicRegistry(Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=bootstrap_servers)))
    first = registry.register(f"{prefix}.t-key", SCHEMA)
    config, log = tmp_path / "headrace.toml", tmp_path / "log"
    config.write_text(f'prefix = "{prefix}"\n[kafka]\nbootstrap_servers = "{bootstrap_servers}"\n')
    with log.open("w") as file:
        child = subprocess.Popen(
            command("--listen", "127.0.0.1:0", "--config", str(config)), cwd=ROOT, stdout=file, stderr=file
        )
    try:
        until(lambda: child.poll() is not None or '"port"' in log.read_text(), "it answers")
        found = re.search(r'"port": (\d+)', log.read_text())
        assert found, log.read_text()
        url = f"http://127.0.0.1:{found[1]}"
        with urllib.request.urlopen(f"{url}/subjects", timeout=60) as answer:
            assert json.load(answer) == [f"{prefix}.t-key"]
        with SchemaRegistryClient({"url": url}) as client:
            assert json.loads(client.get_schema(first).schema_str or "") == SCHEMA
            later = registry.register(f"{prefix}.t-value", SCHEMA)
            assert json.loads(client.get_schema(later).schema_str or "") == SCHEMA
            assert client.get_latest_version(f"{prefix}.t-value").schema_id == later
        child.send_signal(number)
        assert child.wait(PATIENCE) == 0
        assert "Traceback" not in log.read_text()
    finally:
        child.kill()
        child.wait()
