"""Checks the preconditions of reading a source; each finding has a remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg.rows import dict_row

from infra.postgres.server_provider import provider_of
from infra.settings.model import DatabaseSettings
from infra.settings.providers import Provider
from infra.state.positions import SnapshotState
from producers.source import slots, synchronous_commits
from producers.source.publication import read_publication, refuse_foreign, wanted_tables
from producers.source.tables import captured_tables
from producers.source.writability import WritesRefused, refused_writes
from schemas.errors import PreflightFailed, Refused
from schemas.lazy_dataclass import dataclass

_SERVER = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('wal_level') AS wal_level,
       current_setting('max_slot_wal_keep_size') AS keep_size,
       pg_is_in_recovery() AS standby,
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots) AS free_slots,
       r.rolreplication OR r.rolsuper OR EXISTS (
           SELECT 1 FROM pg_roles g WHERE g.rolname = %s AND pg_has_role(g.oid, 'MEMBER')) AS may_replicate,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       EXISTS (SELECT 1 FROM pg_publication WHERE pubname = %s) AS published,
       r.rolname AS role, current_database() AS database
FROM pg_roles r WHERE r.rolname = current_user
"""


@dataclass(frozen=True)
class Finding:
    """A problem that prevents reading a source, its remedy, and lines to print after them."""

    problem: str
    remedy: str
    shown: tuple[str, ...] = ()


def findings(
    connection: psycopg.Connection[Any],
    source: str,
    settings: DatabaseSettings,
    slot: str,
    prefix: str,
    *,
    leave_out: Collection[str] = (),
    copied: Mapping[str, SnapshotState] = MappingProxyType({}),
) -> Iterator[Finding]:
    """Yield every problem that prevents reading `source`: first the server's settings, then the tables.

    Tables in `leave_out` are already stopped and do not block others. Tables in `copied`, at least in part, continue
    even if the role may not read their rows now, since the stream has their changes: only the rest of the copy waits.
    """
    yield from _of_server(connection, source, settings, slot)
    if not settings.tables:
        yield Finding(f"databases.{source}.tables is empty", "name the tables to capture, such as public.projects")
    yield from _of_tables(connection, source, settings, prefix, leave_out, copied)


def of_commits(connection: psycopg.Connection[Any], source: str, slot: str) -> Iterator[Finding]:
    """Yield the finding that commits wait for the producer of `source`; without it they may wait for good.

    So it refuses no start, unlike `findings`.
    """
    if synchronous_commits.counts(connection, source, slot):
        yield Finding(
            f"commits wait for the producer of {source}: {synchronous_commits.PROBLEM}", synchronous_commits.REMEDY
        )


def _of_server(
    connection: psycopg.Connection[Any], source: str, settings: DatabaseSettings, slot: str
) -> Iterator[Finding]:
    with connection.cursor(row_factory=dict_row) as cursor:
        provider = provider_of(connection, settings)
        server = cursor.execute(_SERVER, (provider.replication_role, settings.publication)).fetchone()
    assert server is not None
    state = slots.read(connection, slot)
    if server["version"] < 140_000:
        yield Finding(f"PostgreSQL {server['version'] // 10_000} is too old", "upgrade to 14 or newer")
    if server["standby"]:
        yield Finding("the server is a standby", "point the dsn at the primary")
    if server["wal_level"] != "logical":
        yield Finding(f"wal_level is {server['wal_level']}, not logical", provider.logical)
    if not server["may_replicate"]:
        yield Finding(f"role {server['role']} may not replicate", provider.replicating(server["role"]))
    if server["keep_size"] == "-1" and not settings.allow_unlimited_wal:
        yield Finding(
            "max_slot_wal_keep_size is unlimited, so a stopped producer could fill the server's disk",
            provider.keep_size.format(source=source),
        )
    yield from _of_slot(source, slot, state, server, provider)
    if not server["published"] and not server["may_create"]:
        yield Finding(
            f"publication {settings.publication} does not exist and role {server['role']} may not create it",
            "have an administrator run what `headrace init --sql` prints",
        )


def _of_slot(
    source: str, slot: str, state: slots.SlotState | None, server: dict[str, Any], provider: Provider
) -> Iterator[Finding]:
    if state is None and server["free_slots"] < 1:
        yield Finding("every replication slot is in use", provider.slots)
    if state is not None and state.plugin != slots.PLUGIN:
        yield Finding(
            f"slot {slot} uses plugin {state.plugin}, not {slots.PLUGIN}",
            f"choose another with databases.{source}.slot",
        )
    elif state is not None and state.database != server["database"]:
        yield Finding(
            f"slot {slot} belongs to database {state.database}, not {server['database']}",
            f"correct databases.{source}.dsn, or choose another slot with databases.{source}.slot",
        )
    if state is not None and state.two_phase:
        yield Finding(
            f"slot {slot} was created with two_phase and sends transactions before they commit",
            f"`headrace produce {source} --start-over` drops it and re-snapshots all tables with a new slot",
        )


def _of_tables(
    connection: psycopg.Connection[Any],
    source: str,
    settings: DatabaseSettings,
    prefix: str,
    leave_out: Collection[str],
    copied: Mapping[str, SnapshotState],
) -> Iterator[Finding]:
    try:
        tables = captured_tables(connection, source, settings, prefix, leave_out=leave_out)
    except Refused as error:
        yield Finding(error.problem, error.remedy, error.shown)
        return
    for table in tables:
        snapshot = copied.get(table.name)
        if table.hidden is not None and (snapshot is None or snapshot.from_scratch):
            yield Finding(table.hidden.problem, table.hidden.remedy)
    refused = refused_writes(connection, settings.publication, [table.relation.oid for table in tables])
    names = {table.relation.oid: table.name for table in tables}
    for oid, reason in refused.items():
        yield Finding(f"table {names[oid]}: {reason}", WritesRefused.__doc__ or "")
    try:
        refuse_foreign(
            settings.publication,
            read_publication(connection, settings.publication),
            wanted_tables(connection, tables),
        )
    except Refused as error:
        yield Finding(error.problem, error.remedy)


def require(
    connection: psycopg.Connection[Any],
    source: str,
    settings: DatabaseSettings,
    slot: str,
    prefix: str,
    *,
    leave_out: Collection[str] = (),
    copied: Mapping[str, SnapshotState] = MappingProxyType({}),
) -> None:
    """Raise PreflightFailed with the first finding, and how many more there are."""
    found = list(findings(connection, source, settings, slot, prefix, leave_out=leave_out, copied=copied))
    if found:
        more = f" (and {len(found) - 1} more: see `headrace check`)" if len(found) > 1 else ""
        shown = found[0].shown
        raise PreflightFailed(f"source {source}: {found[0].problem}{more}", remedy=found[0].remedy, shown=shown)
