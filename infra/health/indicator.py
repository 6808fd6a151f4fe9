"""The base class of a health indicator, a query that tests whether a database is healthy.

One indicator is one file in infra/health. Every module there is scanned; there is no list.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Final

import psycopg

import infra.health
from infra.service import log
from schemas.errors import SettingsError
from schemas.lazy_dataclass import dataclass

Cursor = psycopg.Cursor[Any]
Limit = bool | int | float | str

_STATEMENT_MS: Final = 2_000
"""The time limit for an indicator: a slow database must not be queried for long."""


@dataclass(frozen=True)
class Subject:
    """The tables that the migration writes or the snapshot reads, as `schema.table`, and the limit of the settings."""

    tables: tuple[str, ...]
    limit: Limit


@dataclass(frozen=True)
class Fine:
    """The database is healthy."""


@dataclass(frozen=True)
class Stop:
    """Throttle the migration, or the snapshot, until this is over.

    `reason` is one line for the operator, without values of rows.
    """

    reason: str


@dataclass(frozen=True)
class Unknown:
    """The indicator has no answer, which never throttles anything."""

    reason: str


Signal = Fine | Stop | Unknown

BLIND: Final = "the role lacks pg_monitor; `headrace init --sql` prints the GRANT"
_SEES_OTHERS: Final = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"


class Indicator(ABC):
    """One way in which the database can be unhealthy."""

    name: ClassVar[str]
    """Unique. The key under `[migrations.<name>.health]` or `[databases.<name>.snapshot.health]`; its value is the
    limit, or false to disable it."""

    default: ClassVar[Limit]
    """The limit if the settings have none."""

    sees_others: ClassVar[bool] = False
    """Whether it reads the state of other sessions, which needs pg_read_all_stats."""

    @abstractmethod
    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """Return the health of the database.

        Each consumer, and a producer that copies, calls it every `health_seconds`, in its own read-only transaction
        with a limit of two seconds. A database error becomes Unknown.
        """


@cache
def indicators() -> Mapping[str, type[Indicator]]:
    """Return name → class of every indicator."""
    found: dict[str, type[Indicator]] = {}
    for info in sorted(pkgutil.iter_modules(infra.health.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{infra.health.__name__}.{info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Indicator) and member is not Indicator and member.__module__ == module.__name__:
                found[member.name] = member
    return found


def limits(settings: Mapping[str, Limit], section: str, *, unnamed: bool = True) -> dict[str, Limit]:
    """Return indicator → limit of those enabled. Raises SettingsError for an invalid name or limit.

    `section` is that of the settings, for messages. Unless `unnamed`, an indicator without a setting is disabled.
    """
    known = indicators()
    for name, limit in settings.items():
        where = f"{section}.{name}"
        if name not in known:
            raise SettingsError(f"unknown key {where}", remedy=f"indicators: {', '.join(known)}")
        wants_text = isinstance(known[name].default, str)
        if not isinstance(limit, bool) and isinstance(limit, str) != wants_text:
            raise SettingsError(f"{where} must be {'a string' if wants_text else 'a number'} or false")
    chosen = {
        name: indicator.default if settings.get(name, unnamed) is True else settings.get(name, False)
        for name, indicator in known.items()
    }
    return {name: limit for name, limit in chosen.items() if limit is not False and limit != ""}


class Health:
    """The indicators of one consumer or producer. Some compare with their previous sample."""

    def __init__(self, asked: Mapping[str, Limit], tables: Sequence[str]) -> None:
        self._asked = [(name, indicators()[name](), Subject(tuple(tables), limit)) for name, limit in asked.items()]
        self._looked: set[str] = set()
        self._unknown: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The indicators' names."""
        return tuple(name for name, _, _ in self._asked)

    def signals(self, connection: psycopg.Connection[Any]) -> dict[str, Signal]:
        """Return indicator → its signal. Raises psycopg.Error only if the connection is lost."""
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

    def log_unknown(self, signals: Mapping[str, Signal], lines: log.Log) -> None:
        """Log the indicators without an answer, each once as a warning: one that never answers would go unnoticed."""
        for name, signal in signals.items():
            if isinstance(signal, Unknown):
                # Not at its first look: some compare with an earlier one.
                write = lines.debug if name in self._unknown or name not in self._looked else lines.warning
                write("health unknown", indicator=name, reason=signal.reason)
                self._unknown |= {name} & self._looked
            self._looked.add(name)


def stops(signals: Mapping[str, Signal]) -> str:
    """Return the indicators that throttle, each with its reason, as one line; empty if none does."""
    return "; ".join(f"{name}: {signal.reason}" for name, signal in signals.items() if isinstance(signal, Stop))


def number(limit: Limit) -> float:
    """Return a limit that `limits` has checked to be a number."""
    assert not isinstance(limit, str)
    return float(limit)
