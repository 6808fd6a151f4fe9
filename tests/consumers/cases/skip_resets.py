"""container_repositories: some skipped for too many tags, some for another reason, some not skipped."""

from __future__ import annotations

from typing import Any

import psycopg

from consumers.testing import case
from infra.settings.model import Settings
from tests.consumers.container_repositories import DEFAULT, TABLE, TOO_MANY_TAGS, Feed, fill, states

ROWS = {key: (TOO_MANY_TAGS, DEFAULT, ("import_skipped", 5), ("importing", 2))[key % 4] for key in range(60)}


class Case(case.Case):
    """See case.Case."""

    def __init__(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute(TABLE)
        self._feed = Feed(settings, database="here")

    def insert(self) -> None:
        fill(self._connection, ROWS)

    def publish(self) -> None:
        self._feed.snapshot(ROWS)

    def publish_as(self, xid: int) -> bool:
        self._feed.xid = xid
        return True

    def wanted(self) -> case.Rows:
        return {key: DEFAULT for key, row in ROWS.items() if row == TOO_MANY_TAGS}

    def rows(self) -> case.Rows:
        return states(self._connection)  # type: ignore[return-value]

    def writes(self) -> int:
        found = self._connection.execute(
            "SELECT count(*) FROM writes WHERE application LIKE 'headrace consume%'"
        ).fetchone()
        assert found is not None
        return int(found[0])

    def settle_elsewhere(self) -> None:
        self._connection.execute(
            "UPDATE container_repositories SET migration_skipped_reason = 3 WHERE migration_skipped_reason = 2"
        )

    def recreate(self) -> None:
        self._connection.execute("DELETE FROM container_repositories")
        self._feed.send(record for key in ROWS for record in self._feed.delete(key))
        self.insert()
        self.publish()
