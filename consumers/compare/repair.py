"""Repairs a topic: requests a re-snapshot of the rows that differ (`infra.state.snapshot_requests`)."""

from __future__ import annotations

from consumers.compare.judgement import Comparison
from infra.postgres import connect
from infra.settings.model import Settings
from infra.state.snapshot_requests import SnapshotRequest, send_request


def request_repair(settings: Settings, found: Comparison) -> int:
    """Request a re-snapshot of every row that is missing in the topic or differs; return how many.

    A second call requests them again. Extra rows of the topic stay: a re-snapshot of their range has no row for them.
    """
    keys = [*found.missing, *found.differing]
    with connect.session(settings.database(found.database), name=f"repair {found.table}") as connection:
        for key in keys:
            texts = tuple(str(value) for value in key.values())
            send_request(connection, SnapshotRequest(table=found.table, first=texts, last=texts))
    return len(keys)
