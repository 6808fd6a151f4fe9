"""Ten migrations of one table, each with a consumer at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from consumers.operations import catalog
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE
from infra.settings.model import Settings

NAMES = tuple(f"rename_{number}" for number in range(10))
ROWS = 400
_RATE = 5
"""Rows per second: they run for longer than any test looks."""


def with_ten(settings: Settings) -> Settings:
    """Return the settings with ten declared migrations, which change ROWS rows slowly."""
    section = {
        name: {
            "max_rate": _RATE,
            "sub_batch_size": 1,
            "declare": {
                "table": "public.container_repositories",
                "gitlab_schema": "gitlab_main",
                "where": f"coalesce(migration_plan, '') <> '{name}'",
                "set": {"migration_plan": f"'{name}'"},
            },
        }
        for name in NAMES
    }
    dumped = {**settings.model_dump(include={"prefix"}), "migrations": section}
    made = Settings.model_validate(dumped)
    return made.model_copy(update={"kafka": settings.kafka, "databases": settings.databases})


@contextmanager
def at_work(settings: Settings) -> Iterator[None]:
    """Run a consumer of each in a thread."""
    stopping = threading.Event()
    threads = [
        threading.Thread(
            target=consumer_of(settings, catalog.configured(settings, name), "main", stopping=stopping).run, daemon=True
        )
        for name in NAMES
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE)
