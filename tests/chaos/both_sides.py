"""The database that moves in `make chaos ONLY=switchovers`, and an application that writes on all sides all the time.

Each table that moves has headrace's guard. The application does not know who owns what: it tries to write on every
server at every moment, so that the history shows each server that accepts a write.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel

from consumers.testing.waiting import PATIENCE
from infra.guard import write_guard
from tests.chaos.tenures import HISTORY, Key, log_writes
from tests.consumers.container_repositories import TABLE
from tests.consumers.services import ROOT

MAIN: Final = "gitlab_main"
CI: Final = "gitlab_ci"
SEC: Final = "gitlab_sec"
SHARED: Final = "gitlab_shared"

TABLES: Final = {MAIN: "container_repositories", CI: "ci_builds", SEC: "vulnerabilities"}
"""Gitlab schema → its table, for the schemas that can move."""
VALUE: Final = {
    MAIN: ("name", "migration_state", "migration_skipped_reason"),
    CI: ("name",),
    SEC: ("name",),
}
"""Gitlab schema → the columns that make up a row's value in the history and in the topic."""

_ISOLATION: Final = (*[IsolationLevel.READ_COMMITTED] * 4, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE)
_KEYS: Final = 60
_FIRST: Final = 24
"""Keys that exist from the start."""
_PAUSE: Final = (0.01, 0.05)
_PLAIN = "CREATE TABLE public.{} (id bigint PRIMARY KEY, name text NOT NULL)"


def build(connection: psycopg.Connection[Any]) -> None:
    """Build the database `first`, which owns everything."""
    for statement in (
        (ROOT / "infra" / "postgres" / "control.sql").read_text(),
        "INSERT INTO headrace.database (name) VALUES ('first')",
        "INSERT INTO headrace.schema_ownership (gitlab_schema, owner)"
        f" SELECT unnest('{{{MAIN},{CI},{SEC},{SHARED}}}'::text[]), 'first'",
        TABLE,
        "DROP TRIGGER log_write ON public.container_repositories; DROP TABLE public.writes",
        _PLAIN.format(TABLES[CI]),
        _PLAIN.format(TABLES[SEC]),
        _PLAIN.format("settings"),
        "CREATE TABLE public.unguarded (id bigint)",
        HISTORY,
    ):
        connection.execute(statement.encode())
    for gitlab_schema, table in {**TABLES, SHARED: "settings"}.items():
        if gitlab_schema in VALUE:
            connection.execute(_fill(gitlab_schema, table).encode())
            connection.execute(log_writes(gitlab_schema, table, *VALUE[gitlab_schema]).encode())
        else:
            connection.execute(log_writes(gitlab_schema, table, "name").encode())
        write_guard.install(connection, gitlab_schema, [f"public.{table}"])


def filled() -> dict[Key, str]:
    """Return the value of each row that `build` inserts."""
    found: dict[Key, str] = {}
    for key in range(1, _FIRST + 1):
        state = "import_skipped/2" if key % 3 else "default/"
        found[TABLES[MAIN], key] = f"filled {key}/{state}"
        found[TABLES[CI], key] = found[TABLES[SEC], key] = f"filled {key}"
    return found


def _fill(gitlab_schema: str, table: str) -> str:
    rows = f"FROM generate_series(1, {_FIRST}) k"
    if gitlab_schema != MAIN:
        return f"INSERT INTO public.{table} SELECT k, 'filled ' || k {rows}"
    return (
        "INSERT INTO public.container_repositories (id, project_id, name, migration_state, migration_skipped_reason)"
        " SELECT k, 1, 'filled ' || k, CASE WHEN k % 3 > 0 THEN 'import_skipped' ELSE 'default' END,"
        f" CASE WHEN k % 3 > 0 THEN 2 END {rows}"
    )


_WRITES: Final[dict[str, tuple[tuple[float, str], ...]]] = {
    MAIN: (
        (
            0.4,
            "INSERT INTO public.container_repositories AS r"
            " (id, project_id, name, migration_state, migration_skipped_reason)"
            " VALUES (%(key)s, 1, %(token)s, 'import_skipped', 2) ON CONFLICT (id) DO UPDATE SET"
            " (name, migration_state, migration_skipped_reason) ="
            " (excluded.name, excluded.migration_state, excluded.migration_skipped_reason)",
        ),
        (0.5, "UPDATE public.container_repositories SET name = %(token)s WHERE id = %(key)s"),
        (0.1, "DELETE FROM public.container_repositories WHERE id = %(key)s"),
    ),
    CI: (
        (
            0.8,
            "INSERT INTO public.ci_builds VALUES (%(key)s, %(token)s)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        ),
        (0.2, "DELETE FROM public.ci_builds WHERE id = %(key)s"),
    ),
    SEC: (
        (
            0.8,
            "INSERT INTO public.vulnerabilities VALUES (%(key)s, %(token)s)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        ),
        (0.2, "DELETE FROM public.vulnerabilities WHERE id = %(key)s"),
    ),
    SHARED: (
        (
            1.0,
            "INSERT INTO public.settings VALUES (%(key)s, %(token)s)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        ),
    ),
}
"""Gitlab schema → statements, each with its probability."""


class Writer:
    """The application's session on one side; `may_try` returns the gitlab schemas that it tries to write there."""

    def __init__(
        self, side: str, dsn: str, seed: str, may_try: Callable[[psycopg.Connection[Any]], Collection[str]]
    ) -> None:
        self.side = side
        self.taken = dict.fromkeys((*TABLES, SHARED), 0)
        """Gitlab schema → number of committed transactions."""
        self.error: BaseException | None = None
        self._dsn = dsn
        self._draw = random.Random(seed)
        self._may_try = may_try
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name=f"application {side}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the session; raise the error that ended it earlier, if any."""
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"the application's session on {self.side} did not end"
        if self.error is not None:
            raise self.error

    def _guarded(self) -> None:
        try:
            while not self._stop.wait(0.05):
                try:
                    with psycopg.connect(self._dsn, application_name="application") as connection:
                        self._run(connection)
                except (psycopg.OperationalError, psycopg.errors.DatabaseError) as error:
                    if isinstance(error, psycopg.ProgrammingError):
                        raise
        except BaseException as error:
            self.error = error

    def _run(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stop.wait(self._draw.uniform(*_PAUSE)):
            schemas = sorted(self._may_try(connection))
            connection.rollback()
            if not schemas:
                continue
            connection.isolation_level = self._draw.choice(_ISOLATION)
            gitlab_schema = self._draw.choice(schemas)
            try:
                for _ in range(self._draw.choice((1, 1, 2))):
                    self._write(connection, gitlab_schema)
                if self._draw.random() < 0.1:
                    connection.rollback()
                    continue
                connection.commit()
            except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.SerializationFailure):
                connection.rollback()
                continue
            self.taken[gitlab_schema] += 1

    def _write(self, connection: psycopg.Connection[Any], gitlab_schema: str) -> None:
        shares = [share for share, _ in _WRITES[gitlab_schema]]
        ((_, statement),) = self._draw.choices(_WRITES[gitlab_schema], shares)
        self._number += 1
        connection.execute(
            statement.encode(), {"key": self._draw.randrange(1, _KEYS), "token": f"{self.side} {self._number}"}
        )
