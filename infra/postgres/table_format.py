"""Checks and upgrades the format of headrace's own tables: `headrace.database.format`, set by version `format_by`.

These two columns are the same in every format. A program of a newer format upgrades the tables when it starts, in one
transaction that locks headrace.migrations exclusively. The fence of every consumer's transaction reads that table, so
the upgrade waits for running transactions of older programs, and their next transaction, like the heartbeat of an older
producer, finds the newer format and is refused (docs/how-to/upgrading.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg import sql

from schemas import formats
from schemas.errors import Unavailable

Connection = psycopg.Connection[Any]

_THERE: Final = "SELECT pg_catalog.to_regclass('headrace.database')"
_FORMAT: Final = "SELECT format, format_by FROM headrace.database"
_ALONE: Final = "LOCK TABLE headrace.migrations IN ACCESS EXCLUSIVE MODE"
_SET: Final = "UPDATE headrace.database SET format = %s, format_by = %s"
_PATIENCE: Final = "SELECT pg_catalog.current_setting('lock_timeout')"
_SET_PATIENCE: Final = "SELECT pg_catalog.set_config('lock_timeout', %s, true)"
_SECONDS: Final = "5s"
"""A session that waits for an exclusive lock blocks all later ones, such as the application's guarded writes."""


class UpgradeWaits(Unavailable):
    """Start again once the sessions that use headrace's tables have ended their transactions; nothing was changed."""


def require(connection: Connection, database: str) -> None:
    """Raise NewerFormat when headrace's tables in the database have a newer format; missing tables are fine.

    Called before reading tables that no fence guards. Raises psycopg.errors.UndefinedColumn for tables older than
    formats.
    """
    _recorded(connection, database)


def present(connection: Connection) -> bool:
    """Return whether headrace's tables exist, before one of them is read; raises what `require` does."""
    if connection.execute(_THERE).fetchone() == (None,):
        return False
    _format(connection, connection.info.dbname)
    return True


def known(version: object, by: object, database: str) -> None:
    """Raise NewerFormat for a table format that a statement read; None when there is no row yet."""
    if version is not None and version != formats.TABLES.version:
        formats.TABLES.require(version, f"database {database} (headrace.database)", by)


def upgrade(connection: Connection, database: str) -> int | None:
    """Upgrade the tables to the current format, within the transaction that creates the missing ones.

    Returns the format that they had, None if they had the current one or do not exist. Idempotent. Raises NewerFormat,
    UpgradeWaits when another session keeps a table locked, and psycopg.errors.InsufficientPrivilege when the role does
    not own the tables: their owner then runs `statements`.
    """
    recorded = _recorded(connection, database)
    if recorded is None or recorded == formats.TABLES.version:
        return None
    patience = connection.execute(_PATIENCE).fetchone()
    connection.execute(_SET_PATIENCE, (_SECONDS,))
    try:
        connection.execute(_ALONE)
        for step in range(recorded, formats.TABLES.version):
            connection.execute(step_sql(step))
        connection.execute(_SET, (formats.TABLES.version, formats.PROGRAM))
    except psycopg.errors.LockNotAvailable as error:
        raise UpgradeWaits(
            f"headrace's tables in database {database} have format {recorded} and are in use: they cannot be"
            f" upgraded to format {formats.TABLES.version} now"
        ) from error
    connection.execute(_SET_PATIENCE, patience)
    return recorded


def statements() -> Iterator[str]:
    """Yield what an administrator runs before the tables are created: each pending step of an upgrade."""
    for step in range(1, formats.TABLES.version):
        body = sql.SQL(
            "DO $upgrade$ BEGIN IF to_regclass('headrace.database') IS NOT NULL THEN"
            " PERFORM set_config('lock_timeout', {seconds}, true);"
            " LOCK TABLE headrace.migrations IN ACCESS EXCLUSIVE MODE;"
            " IF (SELECT format = {step} FROM headrace.database) THEN\n{steps}\n"
            "UPDATE headrace.database SET format = {step} + 1, format_by = {program}; END IF; END IF; END $upgrade$;"
        ).format(
            seconds=sql.Literal(_SECONDS),
            step=sql.Literal(step),
            steps=sql.SQL(step_sql(step).rstrip().rstrip(";") + ";"),  # a file of ours
            program=sql.Literal(formats.PROGRAM),
        )
        yield body.as_string(None)


def step_sql(step: int) -> str:
    """Return the statements that upgrade the tables from format `step` to the next one.

    They are run once, on a database of that format, which may lack a migration's own tables.
    """
    return resources.files("infra.postgres").joinpath(f"table_upgrade_{step}.sql").read_text(encoding="utf-8")


def _recorded(connection: Connection, database: str) -> int | None:
    if connection.execute(_THERE).fetchone() == (None,):
        return None
    return _format(connection, database)


def _format(connection: Connection, database: str) -> int | None:
    row = connection.execute(_FORMAT).fetchone()
    if row is None:
        return None
    return formats.TABLES.require(row[0], f"database {database} (headrace.database)", row[1])
