"""Does what operators ask for on the page: the same operations that the commands call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final

from consumers.contract.migration import Migration
from consumers.dead_letters import settle
from consumers.dead_letters.given_up import GivenUp, read_given_up, take_up
from consumers.dead_letters.row_keys import RowKeys
from consumers.operations import catalog, pauses
from consumers.operations.pace_changes import set_pace
from consumers.operations.replay import replay
from consumers.operations.start_offsets import parse_start
from consumers.web.documents import (
    DeadLetter,
    DeadLetters,
    GivenUpWork,
    Paced,
    PaceWish,
    Paused,
    Recent,
    Recorded,
    Replayed,
    ReplayWish,
    SettledLetters,
    Wish,
)
from consumers.web.listings import Listings
from infra.postgres import connect
from infra.service import log
from infra.settings.model import DatabaseSettings, Settings
from infra.state.history import Actor, Via, read_history
from schemas.errors import UsageError

_MOST_LETTERS: Final = 1_000
_MOST_ACTIONS: Final = 50


class UnknownMigration(UsageError):
    """Choose one of those that the page shows."""


class OperatorRequests:
    """The requests of the page and of scripts; each method may be called by several threads."""

    def __init__(
        self, settings: Settings, stopping: threading.Event, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stopping` ends retries between two dead letters; `clock` returns seconds."""
        self._settings = settings
        self._stopping = stopping
        self._keys = RowKeys(settings)
        self._letters = Listings[DeadLetters](clock)
        self._histories = Listings[Recent](clock)

    def pause(self, name: str, wish: Wish, operator: str, *, paused: bool) -> Paused:
        """Pause or resume a migration."""
        kind, database = self._found(name, wish.database)
        self._note("pause" if paused else "resume", name, operator)
        pauses.set_paused(self._settings, kind, database, paused, actor=_actor(operator, wish))
        return Paused(migration=name, database=database, paused=paused)

    def replay(self, name: str, wish: ReplayWish, operator: str) -> Replayed:
        """Start a new run; refused while consumers are alive."""
        kind, database = self._found(name, wish.database)
        start = parse_start(wish.start)
        self._note("replay", name, operator)
        begun = replay(self._settings, kind, database, start=start, actor=_actor(operator, wish))
        return Replayed(migration=name, run=begun.run, partitions=len(begun.starts))

    def pace(self, name: str, wish: PaceWish, operator: str) -> Paced:
        """Change the pace of running consumers."""
        kind, database = self._found(name, wish.database)
        self._note("pace", name, operator)
        set_pace(self._settings, kind, database, wish.max_rate, wish.transaction_ms, actor=_actor(operator, wish))
        return Paced(migration=name, database=database, max_rate=wish.max_rate, transaction_ms=wish.transaction_ms)

    def dead_letters(self, name: str, database: str | None) -> DeadLetters:
        """Return what waits for an operator, each with its reason and the key of its row.

        The servers are asked once a second at most for a migration, however many viewers list it.
        """
        kind, target = self._found(name, database)
        return self._letters.get((name, target), lambda: self._read_dead_letters(kind, target))

    def _read_dead_letters(self, kind: type[Migration], target: str) -> DeadLetters:
        entries = settle.read_dead_letters(self._settings, kind, target)[:_MOST_LETTERS]
        return DeadLetters(
            migration=kind.name,
            dead_letters=[
                DeadLetter(
                    event=entry.name,
                    database=entry.database,
                    topic=entry.place.topic,
                    partition=entry.place.partition,
                    offset=entry.offset,
                    reason=entry.reason,
                    run=entry.run,
                    recorded_at=entry.recorded_at,
                    key={column: _shown(value) for column, value in self._keys.columns(entry.key).items()},
                )
                for entry in entries
            ],
            given_up=[GivenUpWork(**asdict(one)) for one in self._given_up(kind, target)],
        )

    def retry(self, name: str, events: Sequence[str], wish: Wish, operator: str) -> SettledLetters:
        """Retry dead letters, and work that was given up."""
        kind, database = self._found(name, wish.database)
        actor = _actor(operator, wish)
        given_up = {one.name for one in self._given_up(kind, database)} & set(events)
        named = [event for event in events if event not in given_up]
        made = kind.configure(self._settings.migration(name))
        self._note("retry", name, operator)
        result = (
            settle.retry(self._settings, made, database, named, self._stopping, actor=actor)
            if named
            else settle.Settled()
        )
        taken = take_up(self._settings, made, database, sorted(given_up), actor) if given_up else 0
        self._letters.forget((name, database))
        return SettledLetters(migration=name, taken_up=taken, **asdict(result))

    def discard(self, name: str, events: Sequence[str], wish: Wish, operator: str) -> SettledLetters:
        """Discard dead letters for good."""
        kind, database = self._found(name, wish.database)
        entries = settle.chosen(name, settle.read_dead_letters(self._settings, kind, database), events)
        made = kind.configure(self._settings.migration(name))
        self._note("discard", name, operator)
        actor = _actor(operator, wish)
        result = settle.discard(self._settings, made, database, entries, self._stopping, actor=actor)
        self._letters.forget((name, database))
        return SettledLetters(migration=name, **asdict(result))

    def recent(self, database: str) -> Recent:
        """Return what operators did last in a database, which is asked once a second at most."""
        section = self._settings.database(database)
        return self._histories.get(database, lambda: self._read_recent(database, section))

    def _read_recent(self, database: str, section: DatabaseSettings) -> Recent:
        with connect.session(section, name="web history") as connection:
            found = read_history(connection, limit=_MOST_ACTIONS)
        actions = [
            Recorded(
                at=each.at,
                action=each.action,
                subject=each.subject,
                actor=each.actor,
                via=each.via,
                reason=each.reason,
                details=each.details,
            )
            for each in reversed(found)
        ]
        return Recent(database=database, actions=actions)

    def _found(self, name: str, database: str | None) -> tuple[type[Migration], str]:
        """Return the migration and the database that it writes; `database` chooses one of several."""
        if name not in catalog.migrations(self._settings):
            raise UnknownMigration(f"no migration is called {name}")
        kind = catalog.migration_class(self._settings, name)
        if database is None:
            return kind, catalog.target_database(self._settings, kind)
        if database not in catalog.listing(self._settings, kind.gitlab_schema):
            raise UsageError(f"{name} does not write database {database}", remedy="choose the one that the page shows")
        return kind, database

    def _given_up(self, kind: type[Migration], database: str) -> list[GivenUp]:
        if not kind.own_tables:
            return []
        return read_given_up(self._settings, kind.configure(self._settings.migration(kind.name)), database)

    def _note(self, action: str, migration: str, operator: str) -> None:
        log.get(migration=migration).info("requested on the console", action=action, operator=operator)


def _actor(operator: str, wish: Wish) -> Actor:
    return Actor(operator, wish.reason or None, Via.CONSOLE)


def _shown(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
