"""Passwords that a command prints: when it is run, and how often a server is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from infra.postgres import passwords
from infra.postgres.passwords import opened
from infra.service.command_output import CommandFailed
from infra.settings.database_login import Address

DSN = "host=h port=1 user=u dbname=d"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_PASSWORDS", passwords._Passwords())


class Printer:
    """A command that prints the first line of a file, and notes that it ran."""

    def __init__(self, directory: Path) -> None:
        self.file, self.runs = directory / "password", directory / "runs"
        self.runs.touch()
        program = (
            "import sys; open(sys.argv[2], 'a').write('x'); text = open(sys.argv[1]).read();"
            " print(text) if text else sys.exit('none today')"
        )
        self.address = Address(DSN, (sys.executable, "-c", program, str(self.file), str(self.runs)))

    @property
    def count(self) -> int:
        return len(self.runs.read_text())


@pytest.fixture
def printer(tmp_path: Path) -> Printer:
    made = Printer(tmp_path)
    made.file.write_text("one\nnot this line\n")
    return made


class RejectsOthers:
    """A server that accepts one password."""

    def __init__(self, accepted: str, *, asks: bool = True) -> None:
        self.accepted, self.asks = accepted, asks
        self.tried: list[str] = []

    def __call__(self, dsn: str) -> str:
        password = str(conninfo_to_dict(dsn).get("password"))
        self.tried.append(password)
        if password == self.accepted:
            return password
        state: Any = SimpleNamespace(used_password=self.asks)
        raise psycopg.OperationalError("rejected", pgconn=state)


def test_address_without_a_command_is_opened_as_it_is() -> None:
    assert opened(Address("dbname=x"), lambda dsn: dsn) == "dbname=x"


def test_one_password_serves_connections_for_a_minute(printer: Printer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(passwords, "monotonic", lambda: now)
    server = RejectsOthers("one")
    assert [opened(printer.address, server), opened(printer.address.adding(replication="database"), server)] == [
        "one",
        "one",
    ]
    assert printer.count == 1
    now = 159.0
    opened(printer.address, server)
    assert printer.count == 1
    now = 160.0
    opened(printer.address, server)
    assert printer.count == 2


def test_rejected_password_of_an_earlier_connection_is_renewed_once(printer: Printer) -> None:
    opened(printer.address, RejectsOthers("one"))
    printer.file.write_text("two\n")
    server = RejectsOthers("two")
    assert opened(printer.address, server) == "two"
    assert (server.tried, printer.count) == (["one", "two"], 2)
    server = RejectsOthers("three")
    with pytest.raises(psycopg.OperationalError, match="rejected"):
        opened(printer.address, server)
    assert (server.tried, printer.count) == (["two", "two"], 3)


def test_rejected_new_password_is_not_tried_again_but_asked_for_by_the_next(printer: Printer) -> None:
    server = RejectsOthers("two")
    with pytest.raises(psycopg.OperationalError, match="rejected"):
        opened(printer.address, server)
    assert (server.tried, printer.count) == (["one"], 1)
    printer.file.write_text("two\n")
    assert opened(printer.address, server) == "two"


def test_server_that_asked_for_no_password_does_not_renew_it(printer: Printer) -> None:
    """It is down: a reconnect would run the command again and again."""
    opened(printer.address, RejectsOthers("one"))
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError):
            opened(printer.address, RejectsOthers("other", asks=False))
    assert printer.count == 1


def test_failing_command_is_named_with_its_server(printer: Printer) -> None:
    printer.file.write_text("")
    opening: Callable[[str], None] = lambda _: pytest.fail("no password")  # noqa: E731
    with pytest.raises(CommandFailed) as raised:
        opened(printer.address, opening)
    assert raised.value.problem == (
        f"password_command of PostgreSQL at h:1/d ({sys.executable}) failed with exit code 1: none today"
    )
