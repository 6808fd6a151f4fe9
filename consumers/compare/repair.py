"""Repairs a topic: requests a re-snapshot of the rows that differ (`infra.state.snapshot_requests`)."""

from __future__ import annotations

from typing import Final

from consumers.compare.judgement import Comparison
from infra.postgres import connect
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, operator, record_action
from infra.state.snapshot_requests import SnapshotRequest, send_request

_AT_ONCE: Final = 1_000
"""The requests of one transaction, which has one line of the history."""


def request_repair(settings: Settings, found: Comparison, actor: Actor | None = None) -> int:
    """Request a re-snapshot of every row that is missing in the topic or differs; return how many.

    A second call requests them again. Extra rows of the topic stay: a re-snapshot of their range has no row for them.
    """
    keys = [*found.missing, *found.differing]
    done_by = actor or operator()
    with connect.session(settings.database(found.database), name=f"repair {found.table}") as connection:
        for first in range(0, len(keys), _AT_ONCE):
            part = keys[first : first + _AT_ONCE]
            with connection.transaction():
                for key in part:
                    texts = tuple(str(value) for value in key.values())
                    send_request(connection, SnapshotRequest(table=found.table, first=texts, last=texts))
                record_action(connection, OperatorAction.REPAIR, [found.table], done_by, rows=len(part))
    return len(keys)
