"""A password that expires while the producer runs: the command prints the next one, and no event is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumers.testing.waiting import until
from infra.postgres import passwords
from tests.administering import whole_script
from tests.conftest import Database
from tests.producers.sources import Source, database_section, running

pytestmark = pytest.mark.stack

PRINTS = "import sys; open(sys.argv[2], 'a').write('x'); print(open(sys.argv[1]).read())"


class Expiring:
    """A role whose password an administrator changes, and the command that prints it."""

    def __init__(self, source: Source, role: str, directory: Path) -> None:
        self.source, self.role = source, role
        self.file, self.runs = directory / "password", directory / "runs"
        self.runs.touch()
        self.command = [sys.executable, "-c", PRINTS, str(self.file), str(self.runs)]

    def accept(self, password: str) -> None:
        """Let the server accept another password, and end the role's sessions, as after a failover."""
        self.source.connection.execute(f"ALTER ROLE {self.role} PASSWORD '{password}'")
        self.source.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (self.role,)
        )

    @property
    def count(self) -> int:
        return len(self.runs.read_text())


@contextmanager
def expiring(source: Source, name: str, dsn: str, directory: Path) -> Iterator[Expiring]:
    made = Expiring(source, f"e_{name}", directory)
    parts = {key: value for key, value in conninfo_to_dict(dsn).items() if key != "password"}
    section = database_section(
        make_conninfo("", **{**parts, "user": made.role}), "public.t",
        slot=source.settings.database("main").slot, password_command=made.command,
    )  # fmt: skip
    source.settings = source.settings.model_copy(update={"databases": {"main": section}})
    source.connection.execute(whole_script(source.settings))
    try:
        yield made
    finally:
        source.drop_slot()
        source.connection.execute(f"DROP OWNED BY {made.role}; DROP ROLE {made.role}")


def test_expired_password_is_renewed_without_a_lost_event(
    new_source: Callable[..., Source], database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_PASSWORDS", passwords._Passwords())
    source = new_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", "public.t")
    with expiring(source, database.name, database.dsn, tmp_path) as role:
        role.file.write_text("one")
        role.accept("one")
        with running(source) as producer:
            producer.caught_up()
            source.connection.execute("INSERT INTO t VALUES (2)")
            producer.caught_up()
            before = role.count
            assert before >= 1

            # The command prints the next one already: the first attempt to connect is rejected, the second is not.
            role.file.write_text("two")
            source.connection.execute("INSERT INTO t VALUES (3)")
            role.accept("two")
            source.connection.execute("INSERT INTO t VALUES (4)")
            producer.caught_up()
            assert role.count > before

            # It still prints the expired one: the producer waits for the next.
            before = role.count
            role.accept("three")
            source.connection.execute("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (5)")
            until(lambda: role.count > before, "a rejected login")
            producer.check()
            role.file.write_text("three")
            producer.caught_up()
        source.require_equal("public.t")
