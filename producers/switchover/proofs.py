"""Proves a switchover's preconditions on the servers: two servers, one follows the other, no standby lacks the close.

Addresses prove nothing: a virtual address, a DNS name or a pooler may lead from both dsns to one server, and all
physical copies of a server have the same system identifier.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from infra.postgres.control import OWNERSHIP
from producers.source.publication import published_tables
from producers.switchover.endpoints import NotMovable
from schemas.positions import Lsn, format_lsn, parse_lsn

_HELD: Final = """
SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
   AND (classid::bigint << 32 | objid::bigint) = %s
"""
_WRITE_PROBE: Final = """
INSERT INTO headrace.switchover_probe (value) VALUES (%s)
    ON CONFLICT (only_row) DO UPDATE SET value = excluded.value, written_at = now()
"""
_STANDBYS: Final = """
SELECT s.slot_name, coalesce(r.flush_lsn, s.restart_lsn) >= %(lsn)s::pg_lsn, s.active
  FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
 WHERE s.slot_type = 'physical' AND NOT s.temporary
   AND (s.restart_lsn IS NOT NULL OR s.wal_status = 'lost' OR s.active)
 UNION ALL
SELECT r.application_name, r.flush_lsn >= %(lsn)s::pg_lsn, true
  FROM pg_stat_replication r
 WHERE r.state <> 'backup' AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid)
 ORDER BY 1
"""
"""A physical slot's restart_lsn is the position that its standby reported as flushed, even while it is disconnected.

A slot that was never used has none; that of a lost slot is NULL, and its standby counts as behind.
"""
_MAY_GIVE: Final = """
SELECT has_table_privilege('headrace.schema_ownership', 'UPDATE')
       AND has_table_privilege('headrace.switchovers', 'INSERT, UPDATE')
       AND has_table_privilege('headrace.switchover_probe', 'INSERT, UPDATE')
       AND pg_has_role('pg_read_all_stats', 'USAGE')
       AND coalesce(has_table_privilege(to_regclass('headrace.history')::oid, 'INSERT'), true)
"""
_MAY_TAKE: Final = """
SELECT has_table_privilege('headrace.schema_ownership', 'UPDATE')
       AND has_table_privilege('headrace.switchovers', 'INSERT, UPDATE')
       AND has_table_privilege('headrace.database', 'UPDATE') AND (rolsuper OR rolreplication)
       AND coalesce(has_table_privilege(to_regclass('headrace.history')::oid, 'INSERT'), true)
       AND (%s OR has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE'))
  FROM pg_roles WHERE rolname = current_user
"""


def same_server(one: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> bool:
    """Return whether both connections lead to one server: a lock taken on one is visible on the other."""
    key = secrets.randbits(63)
    with one.transaction():
        one.execute("SELECT pg_advisory_xact_lock(%s)", (key,))
        return other.execute(_HELD, (key,)).fetchone() == (True,)


def write_probe(connection: psycopg.Connection[Any], *, synchronous: bool) -> tuple[UUID, Lsn]:
    """Write a random value; return it and the WAL position after it and everything that was committed before.

    A `synchronous` probe returns only when the synchronous standbys have flushed it too.
    """
    value = uuid4()
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = " + ("on" if synchronous else "local"))
        connection.execute(_WRITE_PROBE, (value,))
    row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    return value, parse_lsn(row[0])


def has_probe(connection: psycopg.Connection[Any], value: UUID) -> bool:
    """Return whether the other side's value has arrived here, which proves that this server follows that side."""
    return connection.execute("SELECT value FROM headrace.switchover_probe").fetchone() == (value,)


def lagging_standbys(connection: psycopg.Connection[Any], lsn: Lsn, *, known: Iterable[str]) -> list[str]:
    """Return the physical standbys that may lack WAL before `lsn`, by slot or application_name.

    Only standbys that the server knows: connected, or with a slot. `known` are skipped.
    """
    found = connection.execute(_STANDBYS, {"lsn": format_lsn(lsn)})
    passed = set(known)
    return [
        f"{name} ({'is behind' if active else 'is disconnected'})"
        for name, flushed, active in found
        if not flushed and name not in passed
    ]


def own_slot(connection: psycopg.Connection[Any]) -> str:
    """Return the slot through which a standby follows, or followed, its primary; empty if it has none."""
    row = connection.execute("SELECT current_setting('primary_slot_name', true)").fetchone()
    return (row[0] or "") if row else ""


def waited_for(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the transactions with an id, including prepared ones; a new slot waits for them to end."""
    prepared = connection.execute("SELECT gid, date_trunc('second', prepared)::text FROM pg_prepared_xacts ORDER BY 2")
    lines = [f"prepared transaction {gid!r} (since {since})" for gid, since in prepared]
    running = connection.execute(
        "SELECT pid, coalesce(nullif(application_name, ''), 'a session'), date_trunc('second', xact_start)::text"
        " FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start"
    )
    return lines + [f"{name} (process {pid}, since {since})" for pid, name, since in running]


def require_rights(old: psycopg.Connection[Any], new: psycopg.Connection[Any], *, promotes: bool) -> None:
    """Raise NotMovable now for a right that a later step needs."""
    gives = old.execute(_MAY_GIVE).fetchone()
    takes = new.execute(_MAY_TAKE, (not promotes,)).fetchone()
    if not (gives == (True,) and takes == (True,)):
        raise NotMovable(
            "the dsn's role lacks the rights to move a gitlab schema",
            remedy="run this command as an administrator: set HEADRACE_DATABASES__<NAME>__DSN for both",
        )


def require_publication(old: psycopg.Connection[Any], source: str, publication: str) -> None:
    """Raise NotMovable when the old producer would not see the change of owner in its stream."""
    published = published_tables(old, publication)
    if published is not None and ".".join(OWNERSHIP) not in published:
        raise NotMovable(
            f"publication {publication} of {source} lacks {'.'.join(OWNERSHIP)}",
            remedy=f"start `headrace produce {source}` once, or run what `headrace init --sql` prints",
        )
