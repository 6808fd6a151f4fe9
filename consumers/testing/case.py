"""The rows and events of a migration that its contract test uses. Most migrations have a TableCase."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import psycopg

from infra.settings.model import Settings

Rows = Mapping[object, object]


class Case(ABC):
    """Some rows that the migration should change, and some that it should not."""

    @classmethod
    def surroundings(cls, settings: Settings, directory: Path) -> Settings:
        """Return the settings with what else the migration needs; `directory` is the test's own."""
        del directory
        return settings

    @property
    def keys(self) -> Collection[str]:
        """Return the key's columns, which an event always has; only columns of text matter."""
        return ()

    @abstractmethod
    def __init__(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        """Make the tables, empty, and the topics."""

    @abstractmethod
    def insert(self) -> None:
        """Insert the rows."""

    @abstractmethod
    def publish(self) -> None:
        """Produce the rows' events as they were inserted; each call produces them again."""

    @abstractmethod
    def publish_as(self, xid: int) -> bool:
        """Make later events belong to the transaction `xid`; return False if they have no transaction."""

    @abstractmethod
    def wanted(self) -> Rows:
        """Return the rows that should change, as they should be afterwards: None for a row that should be deleted."""

    def left(self) -> int:
        """Return what `remaining` counts for them: their number, unless only their events show them."""
        return len(self.wanted())

    @abstractmethod
    def rows(self) -> Rows:
        """Return all rows as they are."""

    @abstractmethod
    def writes(self) -> int:
        """Return how many writes of the migration there were, by a trigger's log."""

    @abstractmethod
    def settle_elsewhere(self) -> None:
        """Change the rows so that none is left for the migration, as an application would."""

    @abstractmethod
    def recreate(self) -> None:
        """Delete the rows and insert them again, with the events of both."""
