"""Plants a secret in every setting that may have one, and checks that headrace writes it nowhere.

Each output also has to show something that is not secret, so that looking in the wrong place is noticed.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

import headrace
from consumers.testing.waiting import until
from infra.kafka import clients as kafka
from infra.kafka import denials
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.settings.registry_settings import RegistrySettings
from tests.consumers.services import ROOT

NO_DATABASE = "/shown_database does not answer"
COMMANDS = {
    ("check", "--json"): "Kafka at 127.0.0.1",
    ("init", "--sql"): "-- Database main: run in shown_database",
    ("init", "--acls"): "kafka_acl",
    ("verify", "skip_resets"): NO_DATABASE,
    ("dead-letters", "list", "skip_resets"): NO_DATABASE,
    ("produce", "main"): "Kafka at 127.0.0.1",
    ("consume", "skip_resets"): NO_DATABASE,
    ("route", "github.com/a/b"): NO_DATABASE,
}
"""Commands that read settings and connect to each kind of server → a part of their output that is not secret."""


class Planted:
    """A settings file, or an environment, with a different secret in each place; the rest is wrong or missing."""

    def __init__(self, port: int) -> None:
        self.secrets = [f"s3cret-{secrets.token_hex(6)}" for _ in range(8)]
        dsn, kafka, key, registry, in_url, token, oauth, keystore = self.secrets
        self.values = {
            "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
            "KAFKA__OPTIONS__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA__OPTIONS__SASL_MECHANISMS": "PLAIN",
            "KAFKA__OPTIONS__SASL_USERNAME": "shown-user",
            "KAFKA__OPTIONS__SASL_PASSWORD": kafka,
            "KAFKA__OPTIONS__SSL_KEY_PASSWORD": key,
            "KAFKA__OPTIONS__SASL_OAUTHBEARER_CLIENT_SECRET": oauth,
            "KAFKA__OPTIONS__SSL_KEYSTORE_PASSWORD": keystore,
            "REGISTRY__URL": f"http://someone:{in_url}@127.0.0.1:{port}",
            "REGISTRY__KEY_PASSWORD": registry,
            "DATABASES__MAIN__DSN": f"postgresql://shown_role:{dsn}@127.0.0.1:{port}/shown_database",
            "DATABASES__MAIN__GITLAB_SCHEMAS": '["gitlab_main", "praefect", "gitserver"]',
            "DATABASES__MAIN__TABLES": '["public.container_repositories"]',
            "VIRTUAL_STORAGES__DEFAULT": json.dumps(
                {
                    "database": "main",
                    "primary": "gitaly-0",
                    "storages": {"gitaly-0": {"address": f"tcp://127.0.0.1:{port}", "token": token}},
                }
            ),
            "MIGRATIONS__SKIP_RESETS__BATCH_SIZE": "10",
        }

    def variables(self) -> dict[str, str]:
        """Return the environment variables with the same settings."""
        return {f"HEADRACE_{name}": value for name, value in self.values.items()}

    def found_in(self, text: str) -> list[str]:
        return [secret for secret in self.secrets if secret in text]


@pytest.fixture
def planted() -> Iterator[Planted]:
    """Settings with a port on which no process listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield Planted(held.getsockname()[1])


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command as `headrace` does, with an empty file; returns its exit code and output."""
    (tmp_path / "empty.toml").write_text("")
    monkeypatch.setenv("HEADRACE_CONFIG", str(tmp_path / "empty.toml"))
    # No process answers there, and the timeout is not what is tested.
    monkeypatch.setattr(kafka, "ensure_reachable", partial(kafka.ensure_reachable, timeout=0.2))
    monkeypatch.setattr(denials, "_SECONDS", 0.2)
    for name, value in planted.variables().items():
        monkeypatch.setenv(name, value)

    def ended(*words: str, **others: str) -> tuple[int, str]:
        with monkeypatch.context() as patched:
            for name, value in others.items():
                patched.setenv(name, value)
            patched.setattr(sys, "argv", ["headrace", *words])
            with pytest.raises(SystemExit) as caught:
                headrace.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out + output.err

    return ended


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_shows_no_secret(planted: Planted, run: Run, words: tuple[str, ...]) -> None:
    _, output = run(*words)
    assert COMMANDS[words] in output
    assert planted.found_in(output) == []


def test_settings_error_shows_no_secret(planted: Planted, run: Run) -> None:
    secret = planted.secrets[0]
    for name, wrong in (
        ("HEADRACE_DATABASES__MAIN__DSN", f"postgresql://u:{secret}/{secret}@h:x/d"),
        ("HEADRACE_DATABASES__MAIN__DSN", f"host=a password={secret} nonsense={secret}"),
        ("HEADRACE_DATABASES__MAIN__TABLES", secret),
        ("HEADRACE_KAFKA__OPTIONS__SASL_PASSWORDS", secret),
        ("HEADRACE_KAFKA__OPTIONS__SSL_KEY_PEM", secret),
        ("HEADRACE_REGISTRY__PASSWORDS", secret),
        ("HEADRACE_VIRTUAL_STORAGES__DEFAULT", secret),
        ("HEADRACE_METRICS__PORT", secret),
    ):
        code, output = run("check", **{name: wrong})
        assert planted.found_in(output) == [], name
        assert code in (2, 3), name


def test_printed_settings_show_no_secret(planted: Planted, run: Run) -> None:
    del run  # which has set the variables
    settings = load_settings()
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "gitaly-0" in text
        assert planted.found_in(text) == []
    # Counter-check: code that asks for them gets them.
    assert planted.found_in(settings.databases["main"].dsn.get_secret_value()) == planted.secrets[:1]
    assert planted.found_in(str(settings.kafka.options["sasl.password"])) == planted.secrets[1:2]
    # A section that is copied into other settings as a whole keeps them.
    again = Settings(kafka=settings.kafka, registry=settings.registry)
    assert again.kafka.options == settings.kafka.options
    assert again.registry.url == settings.registry.url


@pytest.mark.parametrize(
    "section",
    [
        {"user": "someone", "password": "{}"},
        {"token": "{}"},
        {"oauth": {"token_url": "http://h/token", "client_id": "someone", "client_secret": "{}"}},
    ],
    ids=["password", "token", "oauth"],
)
def test_printed_registry_shows_no_secret(planted: Planted, section: dict[str, object]) -> None:
    """Each other way to authenticate excludes the user in the URL."""
    (secret, *_) = planted.secrets
    filled = json.loads(json.dumps({"url": "http://h", **section}).replace("{}", secret))
    registry = RegistrySettings.model_validate(filled)
    for text in (repr(registry), str(registry), registry.model_dump_json()):
        assert planted.found_in(text) == []


def test_ps_shows_no_secret(planted: Planted, run: Run) -> None:
    del run
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "consume", "skip_resets"], stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        # Empty between the fork and the exec.
        seen = until(lambda: psutil.Process(process.pid).cmdline(), "the command")
        assert "consume" in seen
        assert planted.found_in(" ".join(seen)) == []
    finally:
        _, output = process.communicate(timeout=300)
    assert "headrace: error: PostgreSQL at 127.0.0.1" in output
    assert planted.found_in(output) == []
