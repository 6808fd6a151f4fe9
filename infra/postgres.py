"""Connections to PostgreSQL, and the one place where its driver's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from schemas.errors import DatabaseUnavailable, HeadraceError, PreflightFailed, SettingsError

CANONICAL_TEXT = (
    "-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=3 -c bytea_output=hex"
)
"""Server options under which a value's text is the same in a chunk and in the stream."""

_GONE: Final = ("08", "57P", "53300")
"""SQL states of a server that is not there: no connection, shutting down or starting, every connection in use."""


def connect(dsn: str, *, name: str, autocommit: bool = True, canonical_text: bool = False) -> psycopg.Connection:
    """Open a connection whose application_name is `headrace <name>`.

    With `canonical_text`, values come in the one text form that headrace encodes, whatever the role's own settings.
    Raises DatabaseUnavailable or SettingsError: one line with host, port and database, never the password.
    """
    given = conninfo_to_dict(dsn) if canonical_text else {}
    options = {"options": f"{given.get('options') or ''} {CANONICAL_TEXT}"} if canonical_text else {}
    with translated(dsn):
        return psycopg.connect(
            make_conninfo(
                dsn,
                application_name=f"headrace {name}",
                client_encoding="UTF8",
                connect_timeout=conninfo_to_dict(dsn).get("connect_timeout") or 10,
                **options,
                keepalives_idle=30,
                keepalives_interval=5,
                keepalives_count=3,
            ),
            autocommit=autocommit,
        )


@contextmanager
def translated(dsn: str) -> Iterator[None]:
    """Turn what psycopg raises inside into headrace's errors, naming the server of `dsn`."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
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
        raise HeadraceError(f"{described(dsn)}: {one_line(error)}") from error


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
"""libpq gives refused connections no SQL state: fragments of its message, what it means, what else could be done."""


def _unavailable(dsn: str, error: psycopg.Error) -> HeadraceError:
    text = one_line(error)
    place = described(dsn)
    for fragments, problem, other in _WRONG_DSN:
        # Where the first fragment ends in a quote, a name stands between it and the second.
        matches = all if fragments[0].endswith('"') else any
        if matches(fragment in text for fragment in fragments):
            return SettingsError(f"{place} {problem}", remedy=f"correct the dsn {other}".strip())
    return DatabaseUnavailable(f"{place} does not answer: {text}")
