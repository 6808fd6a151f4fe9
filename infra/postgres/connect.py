"""Opens connections to PostgreSQL, and translates the driver's errors into headrace's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres import table_format
from infra.postgres.parameters import send_json_as_text
from infra.postgres.passwords import opened
from infra.service.command_output import CommandFailed
from infra.settings.database_login import Address, DatabaseLogin, Where, address_of
from schemas.errors import DatabaseUnavailable, HeadraceError, PreflightFailed, SettingsError
from schemas.formats import NewerFormat

SEARCH_PATH: Final = "pg_catalog, pg_temp"
"""Unqualified names resolve to PostgreSQL's own objects, then to temporary tables, which come first if not listed."""

_EVERY: Final[Mapping[str, str]] = {
    "search_path": SEARCH_PATH,
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "idle_session_timeout": "0",  # a session may be idle while it waits for events
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "client_min_messages": "warning",
}
"""Settings of every session, whatever the role, the database or the dsn's options say.

An unqualified name never resolves to a schema that others may write; rows hidden by a policy are an error; statements
see committed data. The role's statement_timeout, transaction_timeout and idle_in_transaction_session_timeout stay, as
the administrator's own limits.
"""

_READING: Final[Mapping[str, str]] = {
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""Further settings of a session that reads tables or the stream: a value has the same text in both, and no timeout
ends a long chunk or the decoding of a large transaction."""

_SINCE: Final[Mapping[str, int]] = {"idle_session_timeout": 140_000, "transaction_timeout": 170_000}
"""Setting → the first server version that has it."""

_GONE: Final = ("08", "57P", "53300")
"""SQLSTATEs of an unavailable server: no connection, shutting down or starting, too many connections."""

_TIMED_OUT: Final = ("57014", "25P04", "57P05")
"""SQLSTATEs of a role's timeouts that can end a session at its start: of a statement, a transaction, while idle."""

_ADDRESSES: Final[MutableMapping[psycopg.Connection[Any], Address]] = WeakKeyDictionary()
"""What each open connection was opened with: a password that opened it may have expired for the next one."""


def connect(where: Where, *, name: str, autocommit: bool = True, reading: bool = False) -> psycopg.Connection:
    """Open a connection with application_name `headrace <name>` and the settings that headrace's sessions rely on.

    Unqualified names resolve by SEARCH_PATH: everything but PostgreSQL's own is qualified. The settings are sent in one
    message once connected, since poolers refuse startup options, and so they win over the dsn's. With `reading`, for
    reading tables, values have the text form that headrace encodes, and no timeout of the role ends the session.
    Raises DatabaseUnavailable or SettingsError: one line with host, port and database, never the password; and what
    infra.postgres.passwords raises.
    """
    address = address_of(where)
    with translated(address):
        connection = opened(
            address.adding(
                application_name=f"headrace {name}",
                client_encoding="UTF8",
                connect_timeout=conninfo_to_dict(address.dsn).get("connect_timeout") or 10,
                keepalives_idle=30,
                keepalives_interval=5,
                keepalives_count=3,
            ),
            partial(psycopg.connect, autocommit=True),
        )
        _ADDRESSES[connection] = address
        try:
            send_json_as_text(connection)
            connection.execute(pinned(connection.info.server_version, reading=reading))
            connection.autocommit = autocommit
        except BaseException as error:
            connection.close()
            if isinstance(error, psycopg.Error) and error.sqlstate in _TIMED_OUT:
                raise slow_start(where, one_line(error)) from error
            raise
        return connection


def slow_start(where: Where, reason: str) -> DatabaseUnavailable:
    """Return the error for a session whose settings an overloaded server did not set in time.

    The role's own timeouts are in force until then.
    """
    return DatabaseUnavailable(f"{described(where)} was too slow to start a session: {reason}")


@contextmanager
def session(database: DatabaseLogin, *, name: str, reading: bool = False) -> Iterator[psycopg.Connection]:
    """Open a connection to a database of the settings for a `with`, and translate psycopg's errors in it.

    `name` and `reading` as for `connect`. For one piece of work; who reconnects calls `connect` and `translated`.
    """
    with translated(database.address), connect(database.address, name=name, reading=reading) as connection:
        yield connection


def another(connection: psycopg.Connection[Any], **parameters: str | int | None) -> Address:
    """Return the address of another connection to the server of `connection`, with these connection parameters."""
    known = _ADDRESSES.get(connection)
    if known is None:
        known = Address(make_conninfo(connection.info.dsn, password=connection.info.password or None))
    return known.adding(**parameters)


def is_standby(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server is a standby now: it accepts no writes, and may lack the primary's last ones."""
    return connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone() == (True,)


def search(connection: psycopg.Connection, schemas: Sequence[str]) -> None:
    """Add `schemas`, which the operator chose, to the session's search_path, after pg_catalog."""
    if schemas:
        names = sql.SQL(", ").join(map(sql.Identifier, ("pg_catalog", *schemas, "pg_temp")))
        connection.execute(sql.SQL("SET search_path = {}").format(names))


def pinned(version: int, *, reading: bool) -> bytes:
    """Return the statement that sets a session's settings on a server of this version, such as 180001.

    One statement, since a replication connection of an old server accepts no more. The timeouts come first: the rest is
    then no longer limited by those of the role.
    """
    wanted = {**_EVERY, **_READING} if reading else _EVERY
    calls = [
        f"pg_catalog.set_config('{name}', '{value}', false)"
        for name, value in sorted(wanted.items(), key=lambda setting: not setting[0].endswith("_timeout"))
        if version >= _SINCE.get(name, 0)
    ]
    return f"SELECT {', '.join(calls)}".encode()


BEGIN_ONE_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


@contextmanager
def one_snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Read everything inside from one snapshot; the connection must be in autocommit mode, outside a transaction."""
    # One round trip to the server, where psycopg's own transaction and a SET are two.
    connection.execute(BEGIN_ONE_SNAPSHOT)
    try:
        yield
    finally:
        if connection.info.status == pq.ConnStatus.OK:
            connection.execute("ROLLBACK")


@contextmanager
def pipelined(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Send what is executed inside in one round trip; its results are there afterwards. Raises the first error.

    If that arrives while later statements are being sent, psycopg's own pipeline logs a warning, and may raise that
    these were skipped instead. After an error psycopg takes statements for prepared that the server has skipped, until
    its own transaction is rolled back: what is executed without one must be `unprepared`.
    """
    first = None
    try:
        with connection.pipeline():
            try:
                yield
            except psycopg.Error as error:
                first = error
    except psycopg.Error as error:
        first = first or error
    if isinstance(first, psycopg.errors.PipelineAborted) and isinstance(first.__context__, psycopg.Error):
        first = first.__context__
    if first is not None:
        raise first from None


@contextmanager
def unprepared(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Have psycopg prepare nothing inside by itself, as it does with what is executed for the sixth time."""
    threshold, connection.prepare_threshold = connection.prepare_threshold, None
    try:
        yield
    finally:
        connection.prepare_threshold = threshold


@contextmanager
def asked_in_one_snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Ask everything inside from one snapshot, in one round trip: the answers are there once it has ended.

    The connection must be as for `one_snapshot`.
    """
    try:
        with unprepared(connection), pipelined(connection):
            connection.execute(BEGIN_ONE_SNAPSHOT)
            yield
            connection.execute("ROLLBACK")
    finally:
        # After an error the body or the server skips the rest of the pipeline.
        if connection.info.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
            connection.execute("ROLLBACK")


@contextmanager
def translated(where: Where) -> Iterator[None]:
    """Translate psycopg's errors into headrace's, naming the server of `where`."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        if (hidden := hidden_rows(error)) is not None:
            raise hidden from error
        raise PreflightFailed(
            f"{described(where)}: {one_line(error)}",
            remedy="grant it: `headrace init --sql` prints what is needed",
        ) from error
    except psycopg.errors.DiskFull as error:
        raise HeadraceError(
            f"{described(where)} has no disk space left: {one_line(error)}",
            remedy="free some space on the server, then start again; nothing is lost",
        ) from error
    except psycopg.OperationalError as error:
        # A server that does answer sends many of these too, such as a lock timeout.
        if error.sqlstate is not None and not error.sqlstate.startswith(_GONE):
            raise HeadraceError(f"{described(where)}: {one_line(error)}") from error
        raise _unavailable(where, error) from error
    except psycopg.Error as error:
        # A connection lost during COPY has neither an error class nor a SQLSTATE.
        if type(error) is psycopg.DatabaseError and error.sqlstate is None:
            raise _unavailable(where, error) from error
        require_known_tables(where, error)
        raise HeadraceError(f"{described(where)}: {one_line(error)}") from error


_ASK_SECONDS: Final = 10


def require_known_tables(where: Where, error: psycopg.Error) -> None:
    """Raise NewerFormat if a statement failed because a newer headrace upgraded headrace's tables meanwhile.

    Called before a process ends with the statement's own error. Uses its own connection and not `connect`, whose error
    handling calls this.
    """
    asking = partial(psycopg.connect, connect_timeout=_ASK_SECONDS)
    with contextlib.suppress(psycopg.Error, CommandFailed), opened(address_of(where), asking) as connection:
        try:
            table_format.require(connection, connection.info.dbname)
        except NewerFormat as newer:
            raise newer from error


class RowsHidden(PreflightFailed):
    """Give the role of the dsn BYPASSRLS, or make it the table's owner: no policy may hide rows from headrace."""


def hidden_rows(error: BaseException) -> RowsHidden | None:
    """Return the refusal for a table whose rows row security would hide; None for any other error.

    Sessions have row_security off, so that PostgreSQL raises an error instead of silently leaving out rows.
    """
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and error.diag.source_function == "check_enable_rls":
        return RowsHidden(f"row security hides rows from this role: {one_line(error)}")
    return None


def require_all_rows(connection: psycopg.Connection[Any], tables: Sequence[str]) -> None:
    """Raise RowsHidden if a policy may hide rows of one of `tables` (`schema.table`) from this role."""
    row = connection.execute(
        "SELECT min(n.nspname || '.' || c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname || '.' || c.relname = ANY(%s::text[]) AND row_security_active(c.oid)",
        (list(tables),),
    ).fetchone()
    if row is not None and row[0] is not None:
        raise RowsHidden(f"row security hides rows of table {row[0]} from this role")


def described(where: Where) -> str:
    """Return `PostgreSQL at host:port/name` for messages; no user, no password."""
    return address_of(where).place


def one_line(error: BaseException) -> str:
    """Return a driver error's message on one line, without the details, which may contain a row's values.

    Notes on the error follow, such as the origin of the code that raised it.
    """
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    notes = getattr(error, "__notes__", ())
    return " ".join(" ".join((primary or str(error), *notes)).split()) or type(error).__name__


_LOGIN: Final = ("password authentication failed", "PAM authentication failed", "no password supplied")
_CREATE_ROLE: Final = "or create the role: `headrace init --sql` prints the SQL for an administrator"
_WRONG_DSN: Final = (
    (_LOGIN, "rejects the user or the password of the dsn", _CREATE_ROLE),
    (('role "', "does not exist"), "does not have the user of the dsn", _CREATE_ROLE),
    (('database "', "does not exist"), "does not exist on that server", "or create the database"),
    (("failed to resolve host", "could not translate host name"), "is on a host whose name cannot be resolved", ""),
    (
        ("no pg_hba.conf entry", "not permitted to log in", "permission denied for"),
        "does not let the user of the dsn connect",
        "",
    ),
    (("connection is bad: invalid", "connection is bad: definition of"), "has an invalid dsn", ""),
)
_UNTRUSTED: Final[Sequence[tuple[Sequence[str], str]]] = (
    (
        ("certificate verify failed", "server certificate for", "server's host name"),
        "has a certificate that does not match host and sslrootcert of the dsn",
    ),
    (
        ("certificate authentication failed", "valid client certificate", "alert unknown ca", "alert certificate"),
        "rejects the certificate of the dsn (sslcert, sslkey) for that user",
    ),
    (("alert bad certificate", "alert decrypt error"), "rejects the certificate of the dsn (sslcert, sslkey)"),
    (("does not support SSL",), "does not support TLS, which sslmode in the dsn requires"),
    (("certificate file", "private key file"), "cannot be reached with the certificate or key files of the dsn"),
)
"""The same for TLS, where libpq's message is shown too: it names files and hosts."""
"""libpq gives refused connections no SQLSTATE: fragments of its message, the meaning, and an alternative remedy."""


def _unavailable(where: Where, error: psycopg.Error) -> HeadraceError:
    text = one_line(error)
    address = address_of(where)
    place = address.place
    if address.password_command and any(fragment in text for fragment in _LOGIN):
        # Waited for by what runs already: the next password may be right.
        return DatabaseUnavailable(
            f"{place} rejects the user of the dsn, or the password that its password_command prints",
            remedy="correct one of them; docs/how-to/providers/ has what a login by token needs",
        )
    for fragments, problem, other in _WRONG_DSN:
        # If the first fragment ends in a quote, a name follows before the second.
        matches = all if fragments[0].endswith('"') else any
        if matches(fragment in text for fragment in fragments):
            return SettingsError(f"{place} {problem}", remedy=f"correct the dsn {other}".strip())
    for signs, problem in _UNTRUSTED:
        if any(sign in text for sign in signs):
            return SettingsError(f"{place} {problem}: {text}", remedy="correct the dsn; see docs/reference/security.md")
    return DatabaseUnavailable(f"{place} does not answer: {text}")
