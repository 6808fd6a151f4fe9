"""Decides whether commits wait for a producer: its stream may count as a synchronous standby.

PostgreSQL matches `synchronous_standby_names` with every replication connection, also a logical one. A commit then
waits until its change is in Kafka, and for good while the producer is stopped and no standby replaces it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg

from infra.service import log

PROBLEM: Final = "synchronous_standby_names matches its replication connection, so that it counts as a standby"
REMEDY: Final = "name the standbys in synchronous_standby_names, instead of *"

_AWAITED: Final = "SELECT sync_state IN ('sync', 'quorum') FROM pg_stat_replication WHERE pid = %s"
_SETTING: Final = """
SELECT current_setting('synchronous_standby_names'),
       (SELECT r.sync_state FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
         WHERE s.slot_name = %s)
"""
_COUNTED: Final = re.compile(r"\s*(?:(?:FIRST|ANY)\s+)?\d+\s*\((.*)\)\s*", re.IGNORECASE | re.DOTALL)
_NAME: Final = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')
_LONGEST: Final = 63
"""The server cuts off the rest of an application_name."""


def application_name(source: str) -> str:
    """Return the application_name of the replication connection of a source's producer."""
    return f"headrace {source}"


def waits_for(connection: psycopg.Connection[Any], pid: int) -> bool:
    """Return whether commits wait for the stream of the server process `pid` now."""
    return connection.execute(_AWAITED, (pid,)).fetchone() == (True,)


def report(lines: log.Log) -> None:
    """Log that commits wait for the producer."""
    lines.error("commits wait for this producer", **{log.REASON: PROBLEM}, remedy=REMEDY)


def counts(connection: psycopg.Connection[Any], source: str, slot: str) -> bool:
    """Return whether the stream of the producer of `source` counts as a standby, or will once it reads `slot`."""
    row = connection.execute(_SETTING, (slot,)).fetchone()
    assert row is not None
    setting, state = row
    return counted(setting, state, application_name(source))


def counted(setting: str, state: str | None, name: str) -> bool:
    """Return whether a connection with application_name `name` counts as a standby.

    `setting` is the text of synchronous_standby_names; `state` is the connection's sync_state, None while there is none
    or this role may not see it. A `potential` one becomes synchronous when another is away.
    """
    if state is not None:
        return state != "async"
    return any(each in ("*", name[:_LONGEST].lower()) for each in _names(setting))


def _names(setting: str) -> list[str]:
    """Return the names listed in synchronous_standby_names, which the server compares without regard to case."""
    within = _COUNTED.fullmatch(setting)
    listed = _NAME.findall(setting if within is None else within[1])
    return [(quoted.replace('""', '"') or plain).lower() for quoted, plain in listed]
