"""Connections to PostgreSQL, and the one place where its driver's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from schemas.errors import DatabaseUnavailable, HeadraceError, PreflightFailed, SettingsError

CANONICAL_TEXT = (
    "-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=3 -c bytea_output=hex"
)
"""Server options under which a value's text is the same in a chunk and in the stream."""


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
    except psycopg.OperationalError as error:
        raise _unavailable(dsn, error) from error
    except psycopg.Error as error:
        raise HeadraceError(f"{described(dsn)}: {one_line(error)}") from error


def described(dsn: str) -> str:
    """Return `PostgreSQL at host:port/name` for messages; no user, no password."""
    parts = conninfo_to_dict(dsn)
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    return f"PostgreSQL at {host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def one_line(error: BaseException) -> str:
    """Return a driver error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _unavailable(dsn: str, error: psycopg.OperationalError) -> HeadraceError:
    text = one_line(error)
    place = described(dsn)
    if "password authentication failed" in text or "no password supplied" in text:
        return SettingsError(f"{place} refuses the user or the password of the dsn", remedy="correct the dsn")
    if 'role "' in text and "does not exist" in text:
        return SettingsError(f"{place} has no such user as the dsn names", remedy="correct the dsn or create the role")
    if 'database "' in text and "does not exist" in text:
        return SettingsError(f"{place} does not exist on that server", remedy="correct the database name in the dsn")
    if "failed to resolve host" in text or "could not translate host name" in text:
        return SettingsError(f"{place}: the host name is unknown", remedy="correct the host in the dsn")
    return DatabaseUnavailable(f"{place} does not answer: {text}")
