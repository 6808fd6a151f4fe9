"""headrace's own tables in a database: creates them, names the database, claims gitlab schemas without an owner.

Shared by producers, which follow the ownership, and consumers, which keep their ledger next to the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple

import psycopg

from infra.postgres import table_format
from infra.postgres.foreign_schema import require_own_schema
from schemas import formats
from schemas.errors import PreflightFailed, Refused
from schemas.lazy_dataclass import dataclass
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
    "throttles",
    "failures",
    "samples",
    "throttle_periods",
    "history",
    "paces",
)
_LOCK: Final = 0x6865616472616365
"""The advisory lock under which the tables are created: "headrace" in ASCII."""


OWNERSHIP: Final = ("headrace", "schema_ownership")
"""The table of owners: a change of owner is streamed in order with the data."""

REQUESTS: Final = ("headrace", "snapshot_requests")
"""The table of requests to re-snapshot a table, also streamed in order."""

HEARTBEAT: Final = ("headrace", "heartbeat")
"""The table whose commits let an idle slot advance."""

HISTORY: Final = ("headrace", "history")
"""The table of what operators did; no role may change its rows."""

PUBLISHED: Final = (OWNERSHIP, REQUESTS, HEARTBEAT)
"""The tables of headrace in every publication."""


class Owner(NamedTuple):
    """The owner of a gitlab schema; each change of owner increments the epoch."""

    name: str
    epoch: int


@dataclass(frozen=True)
class Ownership:
    """What a database records about itself: its name, whether it is a standby, and gitlab schema → owner."""

    name: str | None
    standby: bool
    owners: Mapping[str, Owner]

    def owns(self, gitlab_schema: str) -> bool:
        """Whether this database's transactions may write the gitlab schema.

        It may change at once, unless the transaction that asks holds the gitlab schema's lock (`advisory_locks`).
        """
        owner = self.owners.get(gitlab_schema)
        return not self.standby and owner is not None and owner.name == self.name


_OWNERSHIP: Final = """
SELECT pg_is_in_recovery(), d.name, o.gitlab_schema, o.owner, o.epoch
  FROM (SELECT) AS always LEFT JOIN headrace.database d ON true LEFT JOIN headrace.schema_ownership o ON true
"""
"""One statement, and so one snapshot: a switchover opens a database by changing its name and the owners at once."""


class OtherPrefix(Refused):
    """Set prefix to the recorded one; to start with new topics, remove headrace first (docs/how-to/running.md)."""


class WrongDatabase(Refused):
    """Correct the dsn; if the database was moved on purpose, finish the move with `headrace switchover`."""


def control_sql() -> str:
    """Return the statements that create the tables, for an administrator to read and run."""
    return resources.files("infra.postgres").joinpath("control.sql").read_text(encoding="utf-8")


def tables_made(statements: str) -> list[str]:
    """Return the names of the tables in schema `headrace` that a migration's statements create."""
    return re.findall(r"CREATE TABLE IF NOT EXISTS headrace\.(\w+)", statements)


def ensure_control_schema(
    connection: Connection,
    database_name: str,
    gitlab_schemas: Iterable[str],
    own_tables: str = "",
    *,
    prefix: str | None = None,
) -> None:
    """Create or upgrade the `headrace` schema, name the database, and claim gitlab schemas without an owner.

    Called when a producer or a consumer starts, with `database_name`, `gitlab_schemas` and the topics' `prefix` from
    the settings and a migration's `own_tables`. Idempotent, also for two processes at once. A gitlab schema keeps its
    owner. Without a prefix, the recorded one is neither set nor checked.

    Raises NewerFormat when a newer headrace created the tables, UpgradeWaits when older ones are in use for too long,
    SchemaPlanted when another role created the schema, PreflightFailed when the role lacks a privilege, WrongDatabase
    when the database has another name, and OtherPrefix when its ledger belongs to topics with another prefix; nothing
    was changed then.
    """
    try:
        with connection.transaction():
            # Durable even where the session's other commits are not: a crash must not lose the tables.
            connection.execute("SET LOCAL synchronous_commit = local")
            # The lock first: of two concurrent `CREATE … IF NOT EXISTS` one may fail.
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
            f"the tables in schema headrace of database {database_name} belong to another version of headrace:"
            f" {error.diag.message_primary}",
            remedy="remove headrace from the database (docs/how-to/running.md, `Removing it`), then start again",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise PreflightFailed(
            f"the role {connection.info.user} may not prepare database {database_name}: {error.diag.message_primary}",
            remedy="have an administrator run what `headrace init --sql` prints",
        ) from error


def database_name(connection: Connection) -> str | None:
    """Return the recorded name of the database, None if it has none or the table does not exist."""
    if not table_format.present(connection):
        return None
    row = connection.execute("SELECT name FROM headrace.database").fetchone()
    return None if row is None else str(row[0])


def opened_lsn(connection: Connection) -> Lsn | None:
    """Return the end of WAL when a switchover named, and so opened, this database; None if none did or it is unknown.

    All writes to what the database owns by that switchover come after it: a slot that starts at or before it has all.
    """
    if not table_format.present(connection):
        return None
    row = connection.execute("SELECT opened_lsn::text FROM headrace.database").fetchone()
    return None if row is None or row[0] is None else parse_lsn(row[0])


def recorded_prefix(connection: Connection) -> str | None:
    """Return the prefix of the topics in the ledger, None if it has none or the table does not exist."""
    if not table_format.present(connection):
        return None
    row = connection.execute("SELECT prefix FROM headrace.database").fetchone()
    return None if row is None or row[0] is None else str(row[0])


def require_prefix(connection: Connection, database_name: str, prefix: str) -> None:
    """Raise OtherPrefix when the ledger of the database belongs to topics with another prefix."""
    require_same_prefix(recorded_prefix(connection), database_name, prefix)


def require_same_prefix(recorded: str | None, database_name: str, prefix: str) -> None:
    """Raise OtherPrefix unless the recorded prefix of a database's ledger is `prefix`, or None."""
    if recorded is not None and recorded != prefix:
        raise OtherPrefix(
            f"database {database_name} is used with prefix {recorded}, and the settings have {prefix}: its recorded"
            " progress is that of the other prefix's topics"
        )


def ownership(connection: Connection) -> Ownership:
    """Return what the database records about itself; driver errors pass through, such as UndefinedTable."""
    found = connection.execute(_OWNERSHIP).fetchall()
    standby, name = found[0][:2]
    recorded = {gitlab_schema: Owner(owner, epoch) for *_, gitlab_schema, owner, epoch in found if gitlab_schema}
    return Ownership(name, standby, recorded)


def owners(connection: Connection) -> Mapping[str, Owner]:
    """Return gitlab schema → its owner as recorded in this database, empty if the table does not exist."""
    return ownership(connection).owners if table_format.present(connection) else {}


def require_name(connection: Connection, wanted: str) -> None:
    """Raise WrongDatabase unless the database is recorded under the name that it has in the settings."""
    if (recorded := database_name(connection)) != wanted:
        raise WrongDatabase(f"the settings call this database {wanted}, but it is recorded as {recorded}")


def _missing(connection: Connection, tables: Sequence[str]) -> set[str]:
    # pg_class is readable without any privilege on the schema; to_regclass raises.
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
            f"the settings call this database {wanted}, but it is recorded as {name} (headrace.database)"
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
