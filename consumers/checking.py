"""What `headrace check` advises for migrations: how a slow guard could be helped."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from consumers import catalog
from consumers.indexes import LIMIT_MS, offer
from infra import postgres
from infra.advice import Advice
from infra.settings import Settings
from schemas.errors import HeadraceError


def advise(settings: Settings, limit_ms: int = LIMIT_MS) -> Iterator[Advice]:
    """Yield an index for each migration that finds its rows slowly, where its database is there.

    What keeps a database from being asked is a finding of its source, and not said again.
    """
    for name, kind in sorted(catalog.migrations().items()):
        if not kind.suggested_indexes or not settings.migration(name).enabled:
            continue
        try:
            database = catalog.target_database(settings, kind)
            dsn = settings.database(database).dsn.get_secret_value()
            with postgres.translated(dsn), postgres.connect(dsn, name=f"check {name}") as connection:
                for index in kind.suggested_indexes:
                    if (found := offer(connection, f"migrations.{name}", index, limit_ms)) is not None:
                        yield found
        except (HeadraceError, psycopg.Error):
            continue
