"""A migration's life over TLS, with a role and a principal each for its producer and its consumers.

What `headrace init` prints is all that they have; `headrace check` says that it is enough, and what lacks when the two
are confused.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, fill, states, write_settings
from tests.consumers.services import ROOT, until
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
    """Run a command as `headrace` does; return its code and what it said."""
    monkeypatch.setattr(sys, "argv", ["headrace", *words])
    with pytest.raises(SystemExit) as caught:
        headrace.main()
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out + said.err


def test_each_does_its_work_with_its_own_rights_and_not_the_others(
    world: SecuredWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = ("--config", str(write(tmp_path / "producer.toml", world.producer)))
    consumer = ("--config", str(write(tmp_path / "consumer.toml", world.consumer)))
    code, said = run(capsys, monkeypatch, "check", SOURCE, *producer)
    assert (code, said.splitlines()[-1]) == (0, "ready: Kafka, the registry and 1 database(s)"), said
    code, said = run(capsys, monkeypatch, "check", SOURCE, *consumer)
    assert code == 3
    assert f"role {world.consumer_role} may not replicate" in said
    assert f"role {world.consumer_role} lacks INSERT, UPDATE on headrace.heartbeat" in said
    assert "Kafka denies User:headrace-consumer-gitlab_main " in said
    assert f"Write, Describe on transactional id {world.producer.prefix}.*" in said

    fill(world.superuser, {1: TOO_MANY_TAGS, 2: ("importing", 2)})
    log = tmp_path / "producer.log"
    with log.open("w") as file:
        service = subprocess.Popen(
            [sys.executable, "-m", "headrace", "produce", SOURCE, *producer], cwd=ROOT, stdout=file, stderr=file
        )
    try:
        until(lambda: "table copied" in log.read_text() or service.poll() is not None, "the table is copied")
        assert service.poll() is None, log.read_text()
        code, said = run(capsys, monkeypatch, "check", MIGRATION, *consumer)
        assert code == 0, said
        code, said = run(capsys, monkeypatch, "check", MIGRATION, *producer)
        assert code == 3
        assert f"migrations.{MIGRATION}: role {world.producer_role} lacks INSERT, UPDATE on headrace.migrations" in said
        assert "UPDATE on public.container_repositories" in said
        assert f"Read, Describe on group {world.producer.prefix}.{MIGRATION}" in said
        assert f"Read, Write, Describe on topic {world.producer.prefix}.parked.{MIGRATION}" in said

        code, said = run(capsys, monkeypatch, "consume", MIGRATION, "--until-caught-up", *producer)
        assert code == 1
        assert "the role lacks a right: permission denied for table" in said
        for command in (
            ("consume", MIGRATION, "--until-caught-up"),
            ("verify", MIGRATION),
            ("parked", "list", MIGRATION),
            ("pause", MIGRATION),
            ("resume", MIGRATION),
            ("status", "--json"),
            ("replay", MIGRATION),
            ("consume", MIGRATION, "--until-caught-up"),
        ):
            code, said = run(capsys, monkeypatch, *command, *consumer)
            assert code == 0, (command, said)
            assert not any(str(value) in said for value in passwords(world)), command
        assert states(world.superuser) == {1: DEFAULT, 2: ("importing", 2)}
        code, said = run(capsys, monkeypatch, "verify", "public.container_repositories", "--rows", *producer)
        assert code == 0, said
    finally:
        service.terminate()
        service.wait(180)
    assert "Traceback" not in log.read_text()
    assert not any(str(value) in log.read_text() for value in passwords(world))


def passwords(world: SecuredWorld) -> list[object]:
    return [settings.kafka.options["sasl.password"] for settings in (world.producer, world.consumer)]
