"""Putting a topic right: its producer is asked to read the rows that differ again (`infra.state.snapshot_requests`)."""

from __future__ import annotations

from consumers.compare.comparison import Comparison
from infra.postgres import connect
from infra.settings.model import Settings
from infra.state.snapshot_requests import SnapshotRequest, send_request


def request_repair(settings: Settings, found: Comparison) -> int:
    """Ask for every row that is missing in the topic or differs; return how many. A duplicate reads them once more.

    Rows that only the topic has stay there: a range read again shows no row for them.
    """
    keys = [*found.missing, *found.differing]
    dsn = settings.database(found.database).dsn.get_secret_value()
    with connect.translated(dsn), connect.connect(dsn, name=f"repair {found.table}") as connection:
        for key in keys:
            texts = tuple(str(value) for value in key.values())
            send_request(connection, SnapshotRequest(table=found.table, first=texts, last=texts))
    return len(keys)
