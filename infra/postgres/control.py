"""headrace's own tables in a database: made once, named once, and a gitlab schema claimed only by the first.

Shared by producers, which follow the ownership, and consumers, which keep their ledger beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple

import psycopg

from infra.postgres import table_format
from infra.postgres.foreign_schema import require_own_schema
from schemas import formats
from schemas.errors import PreflightFailed, Refused
from schemas.positions import Lsn, parse_lsn

Connection = psycopg.Connection[Any]

_TABLES: Final = (
    "database",
    "schema_ownership",
    "snapshot_requests",
    "heartbeat",
    "switchovers",
    "switchover_probe",
    "migrations",
    "progress",
    "selections",
    "dead_letters",
    "holds",
    "failures",
)
_LOCK: Final = 0x6865616472616365
"""The advisory lock under which the tables are made: "headrace" in ASCII."""


OWNERSHIP: Final = ("headrace", "schema_ownership")
"""The table of owners: a change of owner comes in order with the data."""

REQUESTS: Final = ("headrace", "snapshot_requests")
"""The table of requests to re-snapshot a table: so does one of them."""

HEARTBEAT: Final = ("headrace", "heartbeat")
"""The table whose commits let an idle slot move on."""

PUBLISHED: Final = (OWNERSHIP, REQUESTS, HEARTBEAT)
"""headrace's own tables that are in every publication."""


class Owner(NamedTuple):
    """Who owns a gitlab schema; each change of owner has the next epoch."""

    name: str
    epoch: int


class OtherPrefix(Refused):
    """Set prefix as it is on record; to begin with new topics, take headrace out first (docs/running.md)."""


class WrongDatabase(Refused):
    """Correct the dsn; if the database was moved on purpose, finish it with `headrace switchover`."""


def control_sql() -> str:
    """Return the statements that make the tables, for an administrator to read and run."""
    return resources.files("infra.postgres").joinpath("control.sql").read_text(encoding="utf-8")


def tables_made(statements: str) -> list[str]:
    """Return the names of the tables in schema `headrace` that a migration's own statements make."""
    return re.findall(r"CREATE TABLE IF NOT EXISTS headrace\.(\w+)", statements)


def ensure_control_schema(
    connection: Connection,
    database_name: str,
    gitlab_schemas: Iterable[str],
    own_tables: str = "",
    *,
    prefix: str | None = None,
) -> None:
    """Make what is missing of the `headrace` schema, upgrade what is older, name the database, claim what nobody owns.

    Called when a producer or a consumer starts, with `database_name`, `gitlab_schemas` and the topics' `prefix` as the
    settings have them and a migration's `own_tables`; again, or by two processes at once, it changes nothing more. A
    gitlab schema that has an owner keeps it. Without a prefix, that on record is neither set nor looked at.

    Raises NewerFormat when a newer headrace made the tables, UpgradeWaits when older ones are in use for too long,
    SchemaPlanted when somebody else made the schema, PreflightFailed when the role may not do what is missing,
    WrongDatabase when the database already has another name, and OtherPrefix when its ledger speaks of topics with
    another prefix; then nothing was changed.
    """
    try:
        with connection.transaction():
            # Durable here also where the session's commits are not: a crash must not take the tables from under it.
            connection.execute("SET LOCAL synchronous_commit = local")
            # The lock first: two `CREATE … IF NOT EXISTS` at the same time can both try, and one fails.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            require_own_schema(connection)
            table_format.upgrade(connection, database_name)
            if _missing(connection, _TABLES):
                connection.execute(control_sql())
            if _missing(connection, tables_made(own_tables)):
                connection.execute(own_tables)
            _name_database(connection, database_name, prefix)
            _claim(connection, database_name, gitlab_schemas)
    except psycopg.errors.UndefinedColumn as error:
        raise PreflightFailed(
            f"the tables in schema headrace of database {database_name} are of another version of headrace:"
            f" {error.diag.message_primary}",
            remedy="take headrace out of the database (docs/running.md, `Taking it out`), and start again",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise PreflightFailed(
            f"the role {connection.info.user} may not prepare database {database_name}: {error.diag.message_primary}",
            remedy="have an administrator run what `headrace init --sql` prints",
        ) from error


def database_name(connection: Connection) -> str | None:
    """Return the name that the database has on record, None while it has none or the table is not there."""
    if not table_format.present(connection):
        return None
    row = connection.execute("SELECT name FROM headrace.database").fetchone()
    return None if row is None else str(row[0])


def opened_lsn(connection: Connection) -> Lsn | None:
    """Return the end of WAL when a switchover named this database, so opening it; None: none did, or it is not known.

    Whatever the database owns by that switchover is written after it, and a slot that begins at or before it has all.
    """
    if not table_format.present(connection):
        return None
    row = connection.execute("SELECT opened_lsn::text FROM headrace.database").fetchone()
    return None if row is None or row[0] is None else parse_lsn(row[0])


def recorded_prefix(connection: Connection) -> str | None:
    """Return the prefix of the topics that the ledger speaks of, None while there is none or the table is not there."""
    if not table_format.present(connection):
        return None
    row = connection.execute("SELECT prefix FROM headrace.database").fetchone()
    return None if row is None or row[0] is None else str(row[0])


def require_prefix(connection: Connection, database_name: str, prefix: str) -> None:
    """Raise OtherPrefix when the ledger of the database speaks of topics with another prefix."""
    recorded = recorded_prefix(connection)
    if recorded is not None and recorded != prefix:
        raise OtherPrefix(
            f"database {database_name} is used with prefix {recorded}, and the settings have {prefix}: the progress on"
            " record there is that of the other prefix's topics"
        )


def owners(connection: Connection) -> dict[str, Owner]:
    """Return gitlab schema → its owner as this database has it, empty where the table is not there."""
    if not table_format.present(connection):
        return {}
    found = connection.execute("SELECT gitlab_schema, owner, epoch FROM headrace.schema_ownership")
    return {gitlab_schema: Owner(owner, epoch) for gitlab_schema, owner, epoch in found}


def _missing(connection: Connection, tables: Sequence[str]) -> set[str]:
    # pg_class is readable without any right on the schema, where to_regclass raises.
    found = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'headrace' AND c.relname = ANY(%s)",
        (list(tables),),
    )
    return set(tables) - {str(name) for (name,) in found}


def _name_database(connection: Connection, wanted: str, prefix: str | None) -> None:
    row = connection.execute("SELECT name, prefix FROM headrace.database").fetchone()
    if row is None:
        connection.execute(
            "INSERT INTO headrace.database (name, prefix, format, format_by) VALUES (%s, %s, %s, %s)",
            (wanted, prefix, formats.TABLES.version, formats.PROGRAM),
        )
        return
    name, recorded = row
    if name != wanted:
        raise WrongDatabase(
            f"the settings call this database {wanted}, but it is on record as {name} (headrace.database)"
        )
    if prefix is None:
        return
    require_prefix(connection, wanted, prefix)
    if recorded is None:
        connection.execute("UPDATE headrace.database SET prefix = %s", (prefix,))


def _claim(connection: Connection, owner: str, gitlab_schemas: Iterable[str]) -> None:
    owned = {name for (name,) in connection.execute("SELECT gitlab_schema FROM headrace.schema_ownership")}
    for gitlab_schema in gitlab_schemas:
        if gitlab_schema not in owned:
            connection.execute(
                "INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES (%s, %s)"
                " ON CONFLICT (gitlab_schema) DO NOTHING",
                (gitlab_schema, owner),
            )
