"""Defines `dsn`, `password_command` and `provider` of `[databases.NAME]`: the address of a database."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import Field, SecretStr, StringConstraints, field_serializer, field_validator, model_validator

from infra.settings.mistakes import close_to
from infra.settings.providers import PROVIDERS
from infra.settings.registry_settings import HIDDEN
from infra.settings.section import Section
from schemas.lazy_dataclass import dataclass

Word = Annotated[str, StringConstraints(min_length=1)]
"""A word of a command, which is run without a shell."""


def without_arguments(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command as it may be shown: its arguments may be secrets."""
    return (*command[:1], *[HIDDEN] * len(command[1:]))


@dataclass(frozen=True)
class Address:
    """A server's database and the role there: a libpq connection string, and the command that prints the password."""

    dsn: str = field(repr=False)
    password_command: tuple[str, ...] = ()
    """Empty: the password, if there is one, is in `dsn` or where libpq looks for it."""

    @property
    def place(self) -> str:
        """`PostgreSQL at host:port/name`, for messages; no user, no password."""
        parts = conninfo_to_dict(self.dsn)
        host = parts.get("host") or parts.get("hostaddr") or "the local socket"
        return f"PostgreSQL at {host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"

    def adding(self, **parameters: str | int | None) -> Address:
        """Return the address with these connection parameters, such as `replication="database"`."""
        return replace(self, dsn=make_conninfo(self.dsn, **parameters))


Where = Address | str
"""An address, or a connection string whose password needs no command."""


def address_of(where: Where) -> Address:
    """Return `where` as an address."""
    return Address(where) if isinstance(where, str) else where


class DatabaseLogin(Section):
    """The address of a database, and who operates its server."""

    dsn: SecretStr
    """PostgreSQL's connection string, `postgresql://user@host:5432/name`; a password better in ~/.pgpass or the
    environment."""
    password_command: tuple[Word, ...] = Field(default=(), repr=False)
    """A program and its arguments that print the password, for one that expires; see docs/how-to/running.md."""
    provider: str | None = None
    """Who operates the server, such as `rds`; by default it is recognized by what the server has."""

    @property
    def address(self) -> Address:
        """What a connection is opened with."""
        return Address(self.dsn.get_secret_value(), self.password_command)

    @field_validator("dsn")
    @classmethod
    def _dsn_parses(cls, value: SecretStr) -> SecretStr:
        try:
            parts = conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            # libpq's own message may quote the password.
            raise ValueError("not a PostgreSQL connection string; expected postgresql://user@host:5432/name") from None
        # An unescaped / or @ ends a password for libpq: the rest would be shown as port, host or database.
        ports = str(parts.get("port") or "").split(",")
        if any(port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536) for port in ports):
            raise ValueError("the port is not a number from 1 to 65535 (in a password, / is %2F and @ is %40)")
        if "@" in f"{parts.get('host')}{parts.get('dbname')}":
            raise ValueError("the host or database contains an @ (in a password, / is %2F and @ is %40)")
        return value

    @field_validator("provider")
    @classmethod
    def _provider_is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in PROVIDERS:
            raise ValueError(f"no provider is called {value}{close_to(value, PROVIDERS)} ({', '.join(PROVIDERS)})")
        return value

    @field_serializer("password_command", when_used="json")
    def _shown_command(self, value: tuple[str, ...]) -> tuple[str, ...]:
        return without_arguments(value)

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_command and conninfo_to_dict(self.dsn.get_secret_value()).get("password"):
            raise ValueError("password_command and a password in the dsn exclude each other")
        return self
