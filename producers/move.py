"""The two ends of a switchover: which gitlab schemas move, and what the databases say of how far they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from infra.control import Owner, database_name, owners
from infra.settings import Settings
from producers import startup
from schemas.errors import Refused, UsageError
from schemas.gitlab_schemas import GITLAB_SHARED


class NotMovable(Refused):
    """See docs/switchover.md."""


@dataclass(frozen=True, slots=True)
class Move:
    """Which gitlab schemas move, from the database `source` to `destination`, as the settings name them."""

    gitlab_schemas: tuple[str, ...]
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Side:
    """What one of the two databases says of itself."""

    name: str | None
    standby: bool
    system: str
    owners: Mapping[str, Owner]


@dataclass(frozen=True, slots=True)
class View:
    """Both sides now; `slot` says whether the new owner's producer has its slot."""

    move: Move
    old: Side
    new: Side
    slot: bool

    @property
    def closed(self) -> bool:
        """The old owner has given all of them away."""
        return all(self._given(each) for each in self.move.gitlab_schemas)

    @property
    def copied(self) -> bool:
        """The copy has the rows that say so."""
        return self.closed and all(
            self.new.owners.get(each) == self.old.owners.get(each) for each in self.move.gitlab_schemas
        )

    @property
    def promoted(self) -> bool:
        return self.copied and not self.new.standby

    @property
    def ready(self) -> bool:
        return self.promoted and (self.slot or self.opened)

    @property
    def opened(self) -> bool:
        """The new owner writes them."""
        return self.promoted and self.new.name == self.move.destination

    def _given(self, gitlab_schema: str) -> bool:
        owner = self.old.owners.get(gitlab_schema)
        return owner is not None and owner.name == self.move.destination


def require_settings(settings: Settings, move: Move) -> None:
    """Raise UsageError unless the settings have both databases, and the new one lists the gitlab schemas."""
    settings.database(move.source)
    listed = settings.database(move.destination).gitlab_schemas
    if move.source == move.destination:
        raise UsageError(f"{move.source} cannot be both ends of a switchover")
    for gitlab_schema in move.gitlab_schemas:
        if gitlab_schema == GITLAB_SHARED:
            raise UsageError("gitlab_shared does not move: every database has its own", remedy="leave it out")
        if gitlab_schema not in listed:
            raise UsageError(
                f"database {move.destination} does not list {gitlab_schema}",
                remedy=f"add it to databases.{move.destination}.gitlab_schemas",
            )


def side(connection: psycopg.Connection[Any]) -> Side:
    row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    assert row is not None
    return Side(database_name(connection), bool(row[0]), startup.system_identifier(connection), owners(connection))


def require_ends(view: View) -> None:
    """Raise NotMovable unless both sides can be the ends of the move."""
    old, new, move = view.old, view.new, view.move
    if old.standby:
        raise NotMovable(f"{move.source} is a standby", remedy="point its dsn at the primary")
    if old.name != move.source:
        raise NotMovable(
            f"the settings call it {move.source}, but it is on record as {old.name}", remedy="correct the dsn"
        )
    if old.system != new.system:
        raise NotMovable(f"{move.destination} is no physical copy of {move.source}", remedy="make it a standby of that")
    for gitlab_schema in move.gitlab_schemas:
        owner = old.owners.get(gitlab_schema)
        if owner is None or owner.name not in (move.source, move.destination):
            raise NotMovable(
                f"{gitlab_schema} is owned by {owner.name if owner else 'nobody'}, not by {move.source}",
                remedy="see headrace.schema_ownership in both databases",
            )
    if new.name not in (move.source, move.destination):
        raise NotMovable(
            f"the settings call the copy {move.destination}, but it is on record as {new.name}",
            remedy="correct the dsn",
        )


def require_chance(view: View) -> None:
    """Raise NotMovable where the copy was promoted too early to become the owner."""
    if not view.new.standby and not view.copied:
        raise NotMovable(
            f"{view.move.destination} was promoted before it was given {', '.join(view.move.gitlab_schemas)},"
            f" and lacks what {view.move.source} wrote since",
            remedy="make it a standby anew; what a switchover has closed is taken back with --abort",
        )
