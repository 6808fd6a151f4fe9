"""The sample database of docker-compose.yml: prepared as its service does, and used with the role of its settings."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.demo.gitlab import Application, skipped_rows
from infra.demo.sample_database import main, prepare
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[3]
SETTINGS = ROOT / "infra" / "compose" / "headrace.toml"
ROWS = 300


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server of its own: what is prepared creates a role, which all databases of a server have."""
    place = Path(tempfile.mkdtemp(prefix="headrace-"))
    place.chmod(0o711)  # PostgreSQL's own user has to enter it when we are root
    keeper = Keeper(remove=place)
    server = EmbeddedPostgres(place / "postgres", keeper, fsync=False)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        keeper.close()


@pytest.mark.long
def test_role_of_the_settings_may_do_what_services_do(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CONFIG", str(SETTINGS))
    command = [sys.executable, "-m", "headrace", "init", "--sql"]
    script = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    dsn = postgres.create_database("gitlabhq")
    for password in ("first", "o'ther"):
        prepare(dsn, password, script, ROWS)

    application = Application(dsn, ROWS)
    application.start()
    until(lambda: application.statements > 20 or not application.working, "the application works")
    application.stop()

    with psycopg.connect(make_conninfo(dsn, user="headrace", password="o'ther"), autocommit=True) as connection:
        attributes = "SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(attributes).fetchone() == (False, True)
        published = "SELECT tablename FROM pg_publication_tables WHERE pubname = 'headrace' AND schemaname = 'public'"
        assert connection.execute(published).fetchall() == [("container_repositories",)]
        reset = connection.execute(
            "UPDATE public.container_repositories SET migration_state = 'default', migration_skipped_reason = NULL"
            " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2"
        )
        assert 0 < reset.rowcount <= skipped_rows(ROWS) + application.statements
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM public.projects")


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepair"], {"ADMINISTRATOR_DSN": "host=nowhere"}) == 2
    assert "prepare" in capsys.readouterr().err
