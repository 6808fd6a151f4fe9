"""A migration's life over TLS, with separate roles and principals for its producer and its consumers.

They have exactly the rights that `headrace init` prints; `headrace check` reports that these suffice, and what is
missing if the two are swapped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from consumers.testing.waiting import until
from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, fill, states, write_settings
from tests.consumers.services import ROOT
from tests.security.authority import Authority
from tests.security.secured_kafka import SecuredKafka
from tests.security.worlds import MIGRATION, SOURCE, SecuredWorld, secured_world, with_table

pytestmark = pytest.mark.stack


@pytest.fixture
def world(
    secured_kafka: SecuredKafka, secured_postgres: EmbeddedPostgres, authority: Authority, prefix: str
) -> Iterator[SecuredWorld]:
    with secured_world(secured_kafka, secured_postgres, authority, prefix) as made:
        yield with_table(made)


def write(path: Path, settings: Settings) -> Path:
    """Write the settings of one of the two as a file."""
    section = settings.databases[SOURCE]
    return write_settings(
        path,
        {
            "prefix": settings.prefix,
            "kafka": {
                "bootstrap_servers": settings.kafka.bootstrap_servers,
                "replication_factor": 1,
                "options": dict(settings.kafka.options),
            },
            "databases": {
                SOURCE: {
                    "dsn": section.dsn.get_secret_value(),
                    "gitlab_schemas": list(section.gitlab_schemas),
                    "tables": list(section.tables),
                    "slot": section.slot,
                }
            },
            "migrations": {MIGRATION: {"batch_size": 100}},
        },
    )


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """Run a command as `headrace` does; return its exit code and output."""
    monkeypatch.setattr(sys, "argv", ["headrace", *words])
    with pytest.raises(SystemExit) as caught:
        headrace.main()
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out + output.err


def test_each_program_works_with_its_own_rights_but_not_the_others(
    world: SecuredWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = ("--config", str(write(tmp_path / "producer.toml", world.producer)))
    consumer = ("--config", str(write(tmp_path / "consumer.toml", world.consumer)))
    code, output = run(capsys, monkeypatch, "check", SOURCE, *producer)
    assert (code, output.splitlines()[-1]) == (0, f"ready: Kafka; database {SOURCE}"), output
    code, output = run(capsys, monkeypatch, "check", SOURCE, *consumer)
    assert code == 3
    assert f"role {world.consumer_role} may not replicate" in output
    assert f"role {world.consumer_role} lacks INSERT, UPDATE on headrace.heartbeat" in output
    assert "Kafka denies User:headrace-consumer-gitlab_main " in output
    assert f"Write, Describe on transactional id {world.producer.prefix}.*" in output

    fill(world.superuser, {1: TOO_MANY_TAGS, 2: ("importing", 2)})
    log = tmp_path / "producer.log"
    with log.open("w") as file:
        service = subprocess.Popen(
            [sys.executable, "-m", "headrace", "produce", SOURCE, *producer], cwd=ROOT, stdout=file, stderr=file
        )
    try:
        until(lambda: "table copied" in log.read_text() or service.poll() is not None, "the table to be copied")
        assert service.poll() is None, log.read_text()
        code, output = run(capsys, monkeypatch, "check", MIGRATION, *consumer)
        assert code == 0, output
        code, output = run(capsys, monkeypatch, "check", MIGRATION, *producer)
        assert code == 3
        assert (
            f"migrations.{MIGRATION}: role {world.producer_role} lacks INSERT, UPDATE on headrace.migrations" in output
        )
        assert "UPDATE on public.container_repositories" in output
        assert f"Read, Describe on group {world.producer.prefix}.{MIGRATION}" in output
        assert f"Read, Write, Describe on topic {world.producer.prefix}.dead_letters.{MIGRATION}" in output

        code, output = run(capsys, monkeypatch, "consume", MIGRATION, "--until-caught-up", *producer)
        assert code == 1
        assert "the role lacks a privilege: permission denied for table" in output
        for command in (
            ("consume", MIGRATION, "--until-caught-up"),
            ("verify", MIGRATION),
            ("dead-letters", "list", MIGRATION),
            ("pause", MIGRATION),
            ("resume", MIGRATION),
            ("status", "--json"),
            ("replay", MIGRATION),
            ("consume", MIGRATION, "--until-caught-up"),
        ):
            code, output = run(capsys, monkeypatch, *command, *consumer)
            assert code == 0, (command, output)
            assert not any(str(value) in output for value in passwords(world)), command
        assert states(world.superuser) == {1: DEFAULT, 2: ("importing", 2)}
        code, output = run(capsys, monkeypatch, "verify", "public.container_repositories", "--rows", *producer)
        assert code == 0, output
    finally:
        service.terminate()
        service.wait(180)
    assert "Traceback" not in log.read_text()
    assert not any(str(value) in log.read_text() for value in passwords(world))


def passwords(world: SecuredWorld) -> list[object]:
    return [settings.kafka.options["sasl.password"] for settings in (world.producer, world.consumer)]
