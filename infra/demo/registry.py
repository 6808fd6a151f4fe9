"""The demo's second act: `status_backfills` adds a column in three releases while both application releases write."""

from __future__ import annotations

import threading
import time
from importlib.resources import files
from typing import Any, Final

from infra.demo.stage import Line, ProofFailed, Stage, count
from infra.postgres.connect import connect

_MIGRATION: Final = "status_backfills"
_ROWS: Final = 20_000

_FILL: Final = """
INSERT INTO repositories (top_level_namespace_id, name, path)
SELECT 1 + i %% 500, 'project-' || i, 'group-' || i %% 500 || '/project-' || i FROM generate_series(1, %s) i
"""
_OLD_RELEASE: Final = "INSERT INTO repositories (top_level_namespace_id, name, path) VALUES (1, %s, %s)"
_NEW_RELEASE: Final = (
    "INSERT INTO repositories (top_level_namespace_id, name, path, migration_status) VALUES (1, %s, %s, 'native')"
)
_WITHOUT: Final = "SELECT count(*) FROM repositories WHERE migration_status IS NULL"
_OTHERS: Final = "SELECT count(*) FROM repositories WHERE migration_status <> 'native'"
_TWICE: Final = "SELECT count(*) - count(DISTINCT id) FROM proof.updates"
_CONTRACTED: Final = """
SELECT count(*) FROM pg_constraint WHERE conrelid = 'repositories'::regclass AND convalidated
AND conname IN ('check_repositories_migration_status_length', 'check_repositories_migration_status_not_null')
"""


class Registry:
    """Existing rows, and an application whose old release does not know the column and whose new one does."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._dsn, self._sql = stage.database("registry")
        self._stop = threading.Event()
        self._insert = _OLD_RELEASE
        self._written = {_OLD_RELEASE: 0, _NEW_RELEASE: 0}
        self._slowest = 0.0

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """See Act.sections."""
        tables = ["public.repositories"]
        return {
            "databases": {
                "registry": {
                    "dsn": self._dsn,
                    "gitlab_schemas": ["registry"],
                    "tables": tables,
                    "table_schemas": dict.fromkeys(tables, "registry"),
                }
            }
        }

    def play(self) -> list[Line]:
        """See Act.play."""
        stage = self._stage
        self._sql.execute(files("infra.demo").joinpath("registry.sql").read_bytes())
        self._sql.execute(_FILL, (_ROWS,))
        self._sql.execute("VACUUM ANALYZE repositories")
        application = threading.Thread(target=self._work, name="registry")
        application.start()
        try:
            with stage.console.status("a column in three releases"), stage.timed(f"{_MIGRATION}: three releases done"):
                producer = stage.start("produce", "registry")
                stage.command("schema", "expand", _MIGRATION)
                member = stage.start("consume", _MIGRATION)
                for _ in stage.patiently(_MIGRATION, producer, member):
                    if count(self._sql, _WITHOUT) < _ROWS / 10:
                        break
                self._insert = _NEW_RELEASE
                stage.command("schema", "backfill", _MIGRATION)
                stage.command("schema", "contract", _MIGRATION)
        finally:
            self._stop.set()
            application.join()
        stage.end(member, producer)
        return self._proven()

    def _work(self) -> None:
        with connect(self._dsn, name="demo") as connection:
            connection.execute("SET application_name = 'registry'; SET search_path = public")
            while not self._stop.wait(0.01):
                insert = self._insert
                number = sum(self._written.values())
                began = time.monotonic()
                connection.execute(insert.encode(), (f"new-{number}", f"new/{number}"))
                self._slowest = max(self._slowest, time.monotonic() - began)
                self._written[insert] += 1

    def _proven(self) -> list[Line]:
        old, new = self._written[_OLD_RELEASE], self._written[_NEW_RELEASE]
        filled = count(self._sql, "SELECT count(*) FROM proof.updates WHERE made_by LIKE 'headrace%%'")
        found = {
            "rows have no status": count(self._sql, _WITHOUT),
            "rows have another status": count(self._sql, _OTHERS),
            "rows were updated twice": count(self._sql, _TWICE),
            "checks are missing or not valid": 2 - count(self._sql, _CONTRACTED),
            "rows were not backfilled, or backfilled needlessly": abs(filled - _ROWS - old),
        }
        if broken := [f"{number} {claim}" for claim, number in found.items() if number]:
            raise ProofFailed(f"{_MIGRATION}: {'; '.join(broken)}")
        return [
            (
                _MIGRATION,
                f"expand, backfill, contract: {filled:,} rows made native, each once; {old:,} of them inserted"
                f" meanwhile by the old release, {new:,} more rows by the new one",
            ),
            ("no long locks", f"the application's slowest statement took {self._slowest * 1000:.0f} ms"),
        ]
