"""The contract of a health indicator: one question to the target database, whether it suffers.

One indicator is one file in consumers/health; every module there is looked at, no list is kept.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

import psycopg

import consumers.health
from schemas.errors import SettingsError

Cursor = psycopg.Cursor[Any]
Limit = bool | int | float | str

_STATEMENT_MS: Final = 2_000
"""An answer that takes longer is none: a database that is slow to tell how it is must not be asked for long."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about: the tables that the migration writes, as `schema.table`, and the limit of the settings."""

    tables: tuple[str, ...]
    limit: Limit


@dataclass(frozen=True, slots=True)
class Fine:
    """Nothing to wait for."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Hold the migration until this is over. `reason` is one line for the operator, without values of rows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The question could not be answered, which never stops anything."""

    reason: str


Signal = Fine | Stop | Unknown

BLIND: Final = "the role may not see it: GRANT pg_monitor, as `headrace init --sql` prints it"
_SEES_OTHERS: Final = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"


class Indicator(ABC):
    """One thing that the database can suffer from."""

    name: ClassVar[str]
    """Unique; the key under `[migrations.<name>.health]`, whose value is the limit, or false to leave it out."""

    default: ClassVar[Limit]
    """The limit where the settings have none."""

    sees_others: ClassVar[bool] = False
    """Whether it looks at other sessions, of whose state a role without pg_read_all_stats sees nothing."""

    @abstractmethod
    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """Say how the database is.

        Called every `health_seconds` by each member, within a read-only transaction of its own that may take two
        seconds. An error of the database is an Unknown.
        """


@cache
def indicators() -> Mapping[str, type[Indicator]]:
    """Return name → class of every indicator."""
    found: dict[str, type[Indicator]] = {}
    for info in sorted(pkgutil.iter_modules(consumers.health.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{consumers.health.__name__}.{info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Indicator) and member is not Indicator and member.__module__ == module.__name__:
                found[member.name] = member
    return found


def limits(settings: Mapping[str, Limit], migration: str) -> dict[str, Limit]:
    """Return indicator → its limit, of those that are asked. Raises SettingsError for a name or limit that is wrong."""
    known = indicators()
    for name, limit in settings.items():
        where = f"migrations.{migration}.health.{name}"
        if name not in known:
            raise SettingsError(f"unknown key {where}", remedy=f"there: {', '.join(known)}")
        wants_text = isinstance(known[name].default, str)
        if not isinstance(limit, bool) and isinstance(limit, str) != wants_text:
            raise SettingsError(f"{where} must be {'a text' if wants_text else 'a number'} or false")
    chosen = {
        name: indicator.default if settings.get(name, True) is True else settings[name]
        for name, indicator in known.items()
    }
    return {name: limit for name, limit in chosen.items() if limit is not False and limit != ""}


class Health:
    """The indicators of one member; some compare with what they saw before."""

    def __init__(self, asked: Mapping[str, Limit], tables: Sequence[str]) -> None:
        self._asked = [(name, indicators()[name](), Subject(tuple(tables), limit)) for name, limit in asked.items()]

    def signals(self, connection: psycopg.Connection[Any]) -> dict[str, Signal]:
        """Return indicator → what it says. Raises psycopg.Error when the connection is lost, and nothing else."""
        answers: dict[str, Signal] = {}
        for name, indicator, subject in self._asked:
            try:
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.execute("SET TRANSACTION READ ONLY")
                    cursor.execute(f"SET LOCAL statement_timeout = {_STATEMENT_MS}")
                    blind = indicator.sees_others and cursor.execute(_SEES_OTHERS).fetchone() != (True,)
                    answers[name] = Unknown(BLIND) if blind else indicator.signal(cursor, subject)
            except psycopg.Error as error:
                if connection.closed:
                    raise
                answers[name] = Unknown(f"{error.sqlstate} {type(error).__name__}")
        return answers


def number(limit: Limit) -> float:
    """Return a limit that `limits` found to be a number."""
    assert not isinstance(limit, str)
    return float(limit)
