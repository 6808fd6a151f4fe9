"""Passwords that a command prints (`databases.NAME.password_command`), such as tokens that expire."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeVar

import psycopg

from infra.service.command_output import output_of
from infra.settings.database_login import Address

T = TypeVar("T")

_FRESH_SECONDS: Final = 60.0
"""How long a password serves further connections: a start opens several, and a reconnect may try many."""


class _Passwords:
    """This process's passwords, by their commands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], tuple[str, float]] = {}

    def current(self, address: Address) -> tuple[str, bool]:
        """Return a password, and whether an earlier connection used it."""
        command = address.password_command
        with self._lock:
            password, until = self._known.get(command, ("", 0.0))
            if monotonic() < until:
                return password, True
            printed = output_of(command, f"password_command of {address.place}")
            password = printed.splitlines()[0].rstrip()
            self._known[command] = password, monotonic() + _FRESH_SECONDS
            return password, False

    def forget(self, address: Address, password: str) -> None:
        """Run the command again for the next connection, unless another thread already did."""
        with self._lock:
            if self._known.get(address.password_command, ("", 0.0))[0] == password:
                del self._known[address.password_command]


_PASSWORDS: Final = _Passwords()


def opened(address: Address, opening: Callable[[str], T]) -> T:
    """Return what `opening` returns for the connection string of `address` with its password.

    If the server asked for a password and rejects one that an earlier connection used, the command is run again, once.
    Raises what `opening` raises, and SettingsError or CommandFailed for the command.
    """
    if not address.password_command:
        return opening(address.dsn)
    password, used = _PASSWORDS.current(address)
    try:
        return opening(address.adding(password=password).dsn)
    except psycopg.OperationalError as error:
        if not _rejected(error):
            raise
        _PASSWORDS.forget(address, password)
        if not used:
            raise
    password, _ = _PASSWORDS.current(address)
    return opening(address.adding(password=password).dsn)


def _rejected(error: psycopg.OperationalError) -> bool:
    """Whether the server asked for a password: a connection that then fails may have had an expired one.

    Asked of libpq, since the server's message may be in any language.
    """
    return error.pgconn is not None and error.pgconn.used_password
