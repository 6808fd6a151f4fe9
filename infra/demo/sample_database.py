"""Creates the tables of `headrace up --sample`, prepares the database of docker-compose.yml, runs an application on it.

    python -m infra.demo.sample_database prepare     the demo's tables, and what `headrace init --sql` prints
    python -m infra.demo.sample_database write       an application at work, until it is stopped

The environment has ADMINISTRATOR_DSN, a superuser's, and for `prepare` ROLE_PASSWORD, the password of headrace's role.
libpq's own variables, such as PGPASSWORD, complete the dsn.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from infra.demo.gitlab import Application, build
from infra.postgres.connect import connect
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from schemas.errors import HeadraceError, Refused

ROWS: Final = 200_000
_PAUSE: Final = 0.05
"""Seconds between the application's statements: five rows a second are inserted, for as long as it runs."""

TABLES: Final = ("public.container_repositories", "public.namespaces", "public.projects")


def load(dsn: str) -> tuple[str, ...]:
    """Create the demo's tables with their rows, unless they are there; return TABLES.

    Raises Refused if another table has the name of one, and DatabaseUnavailable.
    """
    with connect(dsn, name="sample database") as connection:
        _create(connection, ROWS)
    return TABLES


def _create(connection: psycopg.Connection[Any], rows: int) -> None:
    """Create the tables, unless they are there. All or nothing."""
    if connection.execute("SELECT to_regclass('proof.before')").fetchone() != (None,):
        return
    connection.execute("SET search_path = public")
    try:
        build(connection, rows)
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateSchema) as error:
        raise Refused(
            f"the database has other tables with the sample's names: {error.diag.message_primary}",
            remedy="drop them, or leave out --sample",
        ) from error


def prepare(dsn: str, password: str, script: str, rows: int = ROWS) -> None:
    """Create the tables, unless they are there, and the role of the settings' databases. Idempotent.

    `script` is the output of `headrace init --sql`.
    """
    with connect(dsn, name="sample database") as connection:
        _create(connection, rows)
        connection.execute(script.encode())
        for role in _roles():
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))


def _roles() -> set[str]:
    """Return the roles of the settings' dsns."""
    databases = load_settings(None).databases.values()
    users = (conninfo_to_dict(each.dsn.get_secret_value()).get("user") for each in databases)
    return {str(user) for user in users if user}


def write(dsn: str) -> None:
    """Run the application until it is stopped; raises the error that ends it."""
    application = Application(dsn, ROWS, pause=_PAUSE)
    with stop_on_signals() as stop:
        application.start()
        while application.working and not stop.wait(1.0):
            pass
    application.stop()


def main(words: list[str], environment: dict[str, str]) -> int:
    """Run one of the two; return the exit code."""
    try:
        dsn = environment.get("ADMINISTRATOR_DSN", "")
        match words:
            case ["prepare"]:
                command = [sys.executable, "-m", "headrace", "init", "--sql"]
                script = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                prepare(dsn, environment["ROLE_PASSWORD"], script)
            case ["write"]:
                write(dsn)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (HeadraceError, psycopg.Error) as error:
        print(f"sample database: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))
