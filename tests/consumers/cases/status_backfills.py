"""The registry's repositories: some without a status, some with one, of more than one namespace."""

from __future__ import annotations

from typing import Any

import psycopg

from consumers.testing import case
from infra.settings.model import Settings
from tests.consumers.registry import EXPANDED, LOG, TABLE, Key, RegistryFeed, insert_with_status, statuses, writes

ROWS: dict[Key, str | None] = {
    (key % 3 + 1, key): (None, "native", None, "import_complete", "pre_import_failed")[key % 5] for key in range(1, 61)
}


class Case(case.Case):
    """See case.Case."""

    def __init__(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute(TABLE + LOG + EXPANDED)
        self._feed = RegistryFeed(settings, database="here")

    def insert(self) -> None:
        insert_with_status(self._connection, ROWS)

    def publish(self) -> None:
        self._feed.snapshot_of(ROWS)

    def publish_as(self, xid: int) -> bool:
        self._feed.xid = xid
        return True

    def wanted(self) -> case.Rows:
        return {key: "native" for key, status in ROWS.items() if status is None}

    def rows(self) -> case.Rows:
        return statuses(self._connection)  # type: ignore[return-value]

    def writes(self) -> int:
        return writes(self._connection)

    def settle_elsewhere(self) -> None:
        self._connection.execute("UPDATE repositories SET migration_status = 'import_in_progress'")

    def recreate(self) -> None:
        self._connection.execute("DELETE FROM repositories")
        self._feed.send(record for key in ROWS for record in self._feed.delete_key(key))
        self.insert()
        self.publish()
