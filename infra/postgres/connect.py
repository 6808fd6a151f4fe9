"""Connections to PostgreSQL, and the one place where its driver's errors become ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres import table_format
from schemas.errors import DatabaseUnavailable, HeadraceError, PreflightFailed, SettingsError
from schemas.formats import NewerFormat

SEARCH_PATH: Final = "pg_catalog, pg_temp"
"""What a name without a schema means: PostgreSQL's own, else a temporary table, which would come first if unnamed."""

_EVERY: Final[Mapping[str, str]] = {
    "search_path": SEARCH_PATH,
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "idle_session_timeout": "0",  # a session waits for events, which is no fault
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "client_min_messages": "warning",
}
"""What every session relies on, whatever the role, the database or the dsn's own options say.

Nothing in a schema that others may write is ever found by a bare name; rows that a policy hides are an error;
statements see what is committed. The role's statement_timeout, transaction_timeout and
idle_in_transaction_session_timeout stay: they are guards that an administrator wants.
"""

_READING: Final[Mapping[str, str]] = {
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""What a session that reads tables or the stream relies on beside: a value's text is the same in both, and nothing ends
a long chunk, or a large transaction that is decoded."""

_SINCE: Final[Mapping[str, int]] = {"idle_session_timeout": 140_000, "transaction_timeout": 170_000}
"""Setting → the first server version that has it."""

_GONE: Final = ("08", "57P", "53300")
"""SQL states of a server that is not there: no connection, shutting down or starting, every connection in use."""


def connect(dsn: str, *, name: str, autocommit: bool = True, reading: bool = False) -> psycopg.Connection:
    """Open a connection whose application_name is `headrace <name>`, with everything set that our sessions rely on.

    A name without a schema is PostgreSQL's own there (SEARCH_PATH): everything else is written with its schema. The
    settings are sent in one message once connected, since poolers refuse startup options, and so they win over the
    dsn's. With `reading`, which is for reading tables, values come in the one text form that headrace encodes, and no
    timeout of the role ends it, however long that takes.
    Raises DatabaseUnavailable or SettingsError: one line with host, port and database, never the password.
    """
    with translated(dsn):
        connection = psycopg.connect(
            make_conninfo(
                dsn,
                application_name=f"headrace {name}",
                client_encoding="UTF8",
                connect_timeout=conninfo_to_dict(dsn).get("connect_timeout") or 10,
                keepalives_idle=30,
                keepalives_interval=5,
                keepalives_count=3,
            ),
            autocommit=True,
        )
        try:
            connection.execute(pinned(connection.info.server_version, reading=reading))
            connection.autocommit = autocommit
        except psycopg.errors.QueryCanceled as error:
            # By the role's statement_timeout, which holds until this statement has set ours: the server is overloaded.
            connection.close()
            raise DatabaseUnavailable(f"{described(dsn)} was too slow to begin a session: {one_line(error)}") from error
        except BaseException:
            connection.close()
            raise
        return connection


def search(connection: psycopg.Connection, schemas: Sequence[str]) -> None:
    """Let bare names of the session mean what is in `schemas` too, after PostgreSQL's own: an operator's choice."""
    if schemas:
        names = sql.SQL(", ").join(map(sql.Identifier, ("pg_catalog", *schemas, "pg_temp")))
        connection.execute(sql.SQL("SET search_path = {}").format(names))


def pinned(version: int, *, reading: bool) -> bytes:
    """Return the statement that sets what a session relies on, for a server of this version, such as 180001.

    One statement, as a replication connection of an old server takes no more. The first are the timeouts: what is set
    behind them is no longer limited by those of the role.
    """
    wanted = {**_EVERY, **_READING} if reading else _EVERY
    calls = [
        f"pg_catalog.set_config('{name}', '{value}', false)"
        for name, value in sorted(wanted.items(), key=lambda setting: not setting[0].endswith("_timeout"))
        if version >= _SINCE.get(name, 0)
    ]
    return f"SELECT {', '.join(calls)}".encode()


@contextmanager
def one_snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Have all that is read see one moment; the connection must be in autocommit mode, and in no transaction."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


@contextmanager
def translated(dsn: str) -> Iterator[None]:
    """Turn what psycopg raises inside into headrace's errors, naming the server of `dsn`."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        if (hidden := hidden_rows(error)) is not None:
            raise hidden from error
        raise PreflightFailed(
            f"{described(dsn)}: {one_line(error)}",
            remedy="grant it: `headrace init --sql` prints what is needed",
        ) from error
    except psycopg.errors.DiskFull as error:
        raise HeadraceError(
            f"{described(dsn)} has no disk space left: {one_line(error)}",
            remedy="free some on the server, then start again: nothing is lost",
        ) from error
    except psycopg.OperationalError as error:
        # Among them are many that a server which does answer sends, such as a lock timeout.
        if error.sqlstate is not None and not error.sqlstate.startswith(_GONE):
            raise HeadraceError(f"{described(dsn)}: {one_line(error)}") from error
        raise _unavailable(dsn, error) from error
    except psycopg.Error as error:
        # A connection that is lost in a COPY has neither an error class nor a state of its own.
        if type(error) is psycopg.DatabaseError and error.sqlstate is None:
            raise _unavailable(dsn, error) from error
        require_known_tables(dsn, error)
        raise HeadraceError(f"{described(dsn)}: {one_line(error)}") from error


_ASK_SECONDS: Final = 10


def require_known_tables(dsn: str, error: psycopg.Error) -> None:
    """Raise NewerFormat where a statement failed because a newer headrace has upgraded headrace's tables meanwhile.

    To be asked before a process ends with the statement's own error. It takes a connection of its own, and none of
    `connect`, whose errors ask this.
    """
    with contextlib.suppress(psycopg.Error), psycopg.connect(dsn, connect_timeout=_ASK_SECONDS) as connection:
        try:
            table_format.require(connection, connection.info.dbname)
        except NewerFormat as newer:
            raise newer from error


class RowsHidden(PreflightFailed):
    """Give the role of the dsn BYPASSRLS, or make it the table's owner: no policy may hide rows from headrace."""


def hidden_rows(error: BaseException) -> RowsHidden | None:
    """Return the refusal for a table of which row security would have hidden rows; None for any other error.

    Sessions have row_security off, so that PostgreSQL refuses where it would otherwise leave out rows in silence.
    """
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and error.diag.source_function == "check_enable_rls":
        return RowsHidden(f"row security hides rows from this role: {one_line(error)}")
    return None


def require_all_rows(connection: psycopg.Connection[Any], tables: Sequence[str]) -> None:
    """Raise RowsHidden for one of `tables`, as `schema.table`, of which a policy may hide rows from this role."""
    row = connection.execute(
        "SELECT min(n.nspname || '.' || c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname || '.' || c.relname = ANY(%s::text[]) AND row_security_active(c.oid)",
        (list(tables),),
    ).fetchone()
    if row is not None and row[0] is not None:
        raise RowsHidden(f"row security hides rows of table {row[0]} from this role")


def described(dsn: str) -> str:
    """Return `PostgreSQL at host:port/name` for messages; no user, no password."""
    parts = conninfo_to_dict(dsn)
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    return f"PostgreSQL at {host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def one_line(error: BaseException) -> str:
    """Return a driver error's message on one line, without the details, which may have a row's values.

    What was noted on it, such as whose code it came from, follows.
    """
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    notes = getattr(error, "__notes__", ())
    return " ".join(" ".join((primary or str(error), *notes)).split()) or type(error).__name__


_WRONG_DSN: Final = (
    (("password authentication failed", "no password supplied"), "refuses the user or the password of the dsn", ""),
    (('role "', "does not exist"), "has no such user as the dsn names", "or create the role"),
    (('database "', "does not exist"), "does not exist on that server", "or create the database"),
    (("failed to resolve host", "could not translate host name"), "is on a host whose name is unknown", ""),
    (("no pg_hba.conf entry", "not permitted to log in", "permission denied for"), "does not let that user in", ""),
    (("connection is bad: invalid", "connection is bad: definition of"), "has a dsn that is not valid", ""),
)
_UNTRUSTED: Final[Sequence[tuple[Sequence[str], str]]] = (
    (
        ("certificate verify failed", "server certificate for", "server's host name"),
        "does not prove to be the server that host and sslrootcert of the dsn name",
    ),
    (
        ("certificate authentication failed", "valid client certificate", "alert unknown ca", "alert certificate"),
        "does not take the certificate of the dsn (sslcert, sslkey) for that user's",
    ),
    (("alert bad certificate", "alert decrypt error"), "does not take the certificate of the dsn (sslcert, sslkey)"),
    (("does not support SSL",), "does not speak TLS, which sslmode in the dsn asks for"),
    (("certificate file", "private key file"), "cannot be asked with the files that the dsn names"),
)
"""The same of TLS, where libpq's message is told too: it has names of files and hosts."""
"""libpq gives refused connections no SQL state: fragments of its message, what it means, what else could be done."""


def _unavailable(dsn: str, error: psycopg.Error) -> HeadraceError:
    text = one_line(error)
    place = described(dsn)
    for fragments, problem, other in _WRONG_DSN:
        # Where the first fragment ends in a quote, a name stands between it and the second.
        matches = all if fragments[0].endswith('"') else any
        if matches(fragment in text for fragment in fragments):
            return SettingsError(f"{place} {problem}", remedy=f"correct the dsn {other}".strip())
    for signs, problem in _UNTRUSTED:
        if any(sign in text for sign in signs):
            return SettingsError(f"{place} {problem}: {text}", remedy="correct the dsn; see docs/security.md")
    return DatabaseUnavailable(f"{place} does not answer: {text}")
