"""Excludes other switchovers of the same two databases by session locks, which end with their connections."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from infra.postgres.advisory_locks import holders
from producers.switchover.endpoints import NotMovable

LOCK: Final = 0x7377697463686F76
"""The advisory lock of a switchover, on the old owner: "switchov" in ASCII."""
FENCE: Final = 0x7377697463686F77
"""The one on the new owner, which the session that holds the other takes from an earlier switchover."""
_LOCK_LOOKS: Final = 200


def refuse_other(source: str, connection: psycopg.Connection[Any], looks: int) -> None:
    """Refuse to run next to another switchover; a killed one releases its lock once its server notices.

    Called each time that LOCK was not free on `source`, with the number of times before.
    """
    if looks >= _LOCK_LOOKS:
        raise NotMovable(
            f"another switchover is running: {', '.join(holders(connection, LOCK)) or 'it has just ended'}",
            remedy="wait for it, or stop it and run this again; if its command is gone, end the session with"
            f" pg_terminate_backend on {source}",
        )


def end_earlier(connection: psycopg.Connection[Any], _looks: int) -> None:
    """Terminate a switchover that lost its session on the old owner and still has one here, with FENCE."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND (classid::bigint << 32 | objid::bigint) = %s",
        (FENCE,),
    )
