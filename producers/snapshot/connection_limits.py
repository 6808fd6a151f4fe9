"""Compares the connections that a producer opens with those that its server has left.

Each of `snapshot.workers` opens a connection when a copy begins, next to that of the session. The limits are
PostgreSQL's: max_connections without what is reserved, and the CONNECTION LIMIT of role and database, which a superuser
does not have. The stream's connection counts for none of them: max_wal_senders limits those.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from schemas.lazy_dataclass import dataclass

_OTHERS: Final = """
WITH server AS (
    SELECT r.oid, r.rolname, r.rolsuper, r.rolconnlimit, d.oid AS database, d.datname, d.datconnlimit,
           current_setting('max_connections')::int - CASE WHEN r.rolsuper THEN 0 ELSE
               current_setting('superuser_reserved_connections')::int + CASE WHEN EXISTS (
                   SELECT 1 FROM pg_roles WHERE rolname = 'pg_use_reserved_connections'
                      AND pg_has_role(r.oid, oid, 'USAGE')) THEN 0
               ELSE coalesce(current_setting('reserved_connections', true), '0')::int END END AS allowed
      FROM pg_roles r, pg_database d WHERE r.rolname = session_user AND d.datname = current_database()
), sessions AS (
    SELECT datid, usesysid FROM pg_stat_activity
     WHERE pid <> pg_backend_pid() AND usesysid IS NOT NULL AND datid IS NOT NULL
       AND coalesce(backend_type, 'client backend') = 'client backend'
       AND pid NOT IN (SELECT pid FROM pg_stat_replication)
       AND NOT (datid = (SELECT database FROM server) AND application_name = ANY(%s))
)
SELECT 'max_connections', allowed - (SELECT count(*) FROM sessions) FROM server
UNION ALL
SELECT 'the CONNECTION LIMIT of role ' || rolname,
       rolconnlimit - (SELECT count(*) FROM sessions WHERE usesysid = oid)
  FROM server WHERE rolconnlimit >= 0 AND NOT rolsuper
UNION ALL
SELECT 'the CONNECTION LIMIT of database ' || datname,
       datconnlimit - (SELECT count(*) FROM sessions WHERE datid = database)
  FROM server WHERE datconnlimit >= 0 AND NOT rolsuper
"""
"""Limit, and how many connections it leaves next to those of others.

The type of another role's session is hidden from a role without pg_read_all_stats, and is taken for a client's.
"""


def session_name(source: str) -> str:
    """Return the name of a producer's session with its database, to which `connect` adds `headrace `."""
    return f"produce {source}"


def worker_name(source: str) -> str:
    """Return the name of the session of each worker of a snapshot."""
    return f"{session_name(source)} worker"


@dataclass(frozen=True)
class Shortage:
    """A limit that leaves the producer fewer connections than it has `opened` once a copy begins."""

    limit: str
    left: int
    opened: int


def shortage(connection: psycopg.Connection[Any], source: str, workers: int) -> Shortage | None:
    """Return the shortage if the producer of `source`, with so many workers, cannot open all its connections now.

    Those that it has open already are not another's, nor is `connection`, which is closed before it starts.
    """
    own = [f"headrace {session_name(source)}", f"headrace {worker_name(source)}"]
    opened = 1 + workers
    found = [(limit, max(0, left)) for limit, left in connection.execute(_OTHERS, (own,)).fetchall()]
    limit, left = min(found, key=lambda each: each[1])
    return Shortage(limit, left, opened) if left < opened else None
