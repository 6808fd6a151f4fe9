"""Finds the standbys that a failover slot's stream waits for: `synchronized_standby_slots` (PostgreSQL 17 and newer).

The server sends a change only once each of them has it, so that no topic is ever ahead of a standby that may be
promoted. It waits forever for one that is down or does not exist, and reports that only in its own log.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from schemas.positions import format_lsn, parse_lsn

REMEDY: Final = (
    "start the standby, or remove its slot from synchronized_standby_slots and reload the server's configuration;"
    " the producer then continues by itself"
)

_LISTED: Final = """
SELECT l.name, s.slot_type, s.wal_status = 'lost', s.active, s.restart_lsn::text
  FROM unnest(string_to_array(current_setting('synchronized_standby_slots', true), ',')) WITH ORDINALITY raw(text, n)
 CROSS JOIN LATERAL (SELECT lower(trim(both ' "' FROM raw.text))) l(name)
  LEFT JOIN pg_replication_slots s ON s.slot_name = l.name
 WHERE l.name <> '' ORDER BY raw.n
"""
_WAITS: Final = """
SELECT a.wait_event = 'WaitForStandbyConfirmation' FROM pg_replication_slots s
  JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = %s
"""
_FAILOVER: Final = "SELECT to_jsonb(s) -> 'failover' = 'true' FROM pg_replication_slots s WHERE s.slot_name = %s"
"""Before 17 there is no such column."""


def awaited(connection: psycopg.Connection[Any], slot: str) -> list[str]:
    """Return the standbys that the stream of `slot` waits for now, each with the reason."""
    if connection.execute(_WAITS, (slot,)).fetchone() != (True,):
        return []
    listed = connection.execute(_LISTED).fetchall()
    obstacles = [why for each in listed if (why := _obstacle(*each[:4])) is not None]
    return obstacles or [
        f"standby slot {name} has confirmed no more than {format_lsn(parse_lsn(lsn))}"
        for name, *_, lsn in listed
        if lsn is not None
    ]


def obstacles(connection: psycopg.Connection[Any], slot: str) -> list[str]:
    """Return the standbys that a stream of `slot` would wait for forever, whether or not one is open."""
    if connection.execute(_FAILOVER, (slot,)).fetchone() != (True,):
        return []
    return [why for each in connection.execute(_LISTED).fetchall() if (why := _obstacle(*each[:4])) is not None]


def _obstacle(name: str, kind: str | None, lost: bool | None, active: bool | None) -> str | None:
    if kind is None:
        return f"standby slot {name} does not exist"
    if kind != "physical":
        return f"slot {name} is {kind}, not a standby's physical slot"
    if lost:
        return f"standby slot {name} is lost: recreate it and its standby"
    return None if active else f"standby slot {name} has no standby connected"
