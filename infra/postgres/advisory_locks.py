"""Advisory locks by which headrace's transactions exclude each other.

They write nothing and queue fairly: an exclusive request waits only for current holders, and no later request
overtakes it. A row lock does neither; many sessions on one row need a multixact and a WAL record each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import psycopg

Cursor = psycopg.Cursor[Any]


def lock_key(kind: str, name: str) -> int:
    """Return the 64-bit key of the lock on `name` of this `kind`."""
    return int.from_bytes(
        hashlib.blake2b(f"headrace:{kind}:{name}".encode(), digest_size=8).digest(), "big", signed=True
    )


def ownership_key(gitlab_schema: str) -> int:
    """Return the key that writers of a gitlab schema's tables share, and that a change of owner locks exclusively."""
    return lock_key("schema_ownership", gitlab_schema)


def migration_key(migration: str) -> int:
    """Return the key that a migration's consumers share, and that a pause or replay locks exclusively."""
    return lock_key("migration", migration)


def exclude(connection: psycopg.Connection[Any], keys: Iterable[int]) -> None:
    """Take locks exclusively until the connection's transaction ends, after the sharers have released them.

    Raises psycopg.errors.LockNotAvailable when that takes longer than the session's lock_timeout.
    """
    for key in sorted(keys):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (key,))


def holders(connection: psycopg.Connection[Any], key: int) -> list[str]:
    """Return the sessions that hold the lock, each with its name, process id and the start of its transaction.

    Outside a transaction it is the start of the session.
    """
    found = connection.execute(
        "SELECT coalesce(nullif(a.application_name, ''), 'a session'), l.pid,"
        " date_trunc('second', coalesce(a.xact_start, a.backend_start))::text"
        " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND (l.classid::bigint << 32 | l.objid::bigint) = %s ORDER BY l.pid",
        (key,),
    )
    return [f"{name} (process {pid}, since {since or 'an unknown time'})" for name, pid, since in found]
