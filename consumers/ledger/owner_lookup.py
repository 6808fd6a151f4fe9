"""Finds the database that currently owns a gitlab schema, from each database's own rows, as the fence reads them."""

from __future__ import annotations

from collections.abc import Iterable

from infra.postgres import connect, table_format
from infra.postgres.control import Ownership, ownership
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved, SettingsError, Unavailable
from schemas.gitlab_schemas import PER_DATABASE
from schemas.lazy_dataclass import dataclass


class TwoOwners(OwnershipMoved):
    """Stop what writes to one of them, and correct headrace.schema_ownership there (docs/how-to/switchover.md)."""


@dataclass(frozen=True)
class Answer:
    """The answer of a database, by its name in the settings."""

    database: str
    recorded: Ownership

    def owns(self, gitlab_schema: str) -> bool:
        return self.recorded.name == self.database and self.recorded.owns(gitlab_schema)

    def says(self, gitlab_schema: str) -> str:
        """Return the owner according to this database, and why it is not the owner itself."""
        said = f"{self.database} says {self.recorded.owners[gitlab_schema].name}"
        if self.recorded.name != self.database:
            return f"{said} but is recorded as {self.recorded.name}"
        return f"{said} but is a standby" if self.recorded.standby else said


@dataclass(frozen=True)
class Answers:
    """The answers of several databases; `silent` did not answer."""

    given: tuple[Answer, ...]
    silent: tuple[str, ...]

    def owner(self, gitlab_schema: str) -> str | None:
        """Return the database that owns `gitlab_schema` by its own rows; None if no database has claimed it.

        Raises TwoOwners if several claim it, and OwnershipMoved if all that answer name another one: a switchover is
        in progress, or the current owner does not answer.
        """
        owning = [each for each in self.given if each.owns(gitlab_schema)]
        if len(owning) > 1:
            named = " and ".join(
                f"{each.database} (epoch {each.recorded.owners[gitlab_schema].epoch})" for each in owning
            )
            raise TwoOwners(f"{named} {'both' if len(owning) == 2 else 'all'} claim to own {gitlab_schema}")
        if owning:
            return owning[0].database
        if any(gitlab_schema in each.recorded.owners for each in self.given):
            said = ", ".join(each.says(gitlab_schema) for each in self.given if gitlab_schema in each.recorded.owners)
            silent = f"; {', '.join(self.silent)} does not answer" if self.silent else ""
            raise OwnershipMoved(
                f"no reachable database owns {gitlab_schema} ({said}{silent})",
                remedy="restart once `headrace switchover` is complete and the owner answers",
            )
        return None


def ask(settings: Settings, databases: Iterable[str]) -> Answers:
    """Query each of `databases`, names in the settings, for its recorded owners."""
    asked = {name: _ask(settings, name) for name in databases}
    return Answers(
        tuple(answer for answer in asked.values() if answer is not None),
        tuple(name for name, answer in asked.items() if answer is None),
    )


def owning_database(settings: Settings, databases: Iterable[str], gitlab_schema: str) -> str | None:
    """Return the one of `databases` that owns `gitlab_schema`; None if none has claimed it.

    Raises TwoOwners and OwnershipMoved as `Answers.owner` does.
    """
    return ask(settings, databases).owner(gitlab_schema)


def _ask(settings: Settings, database: str) -> Answer | None:
    try:
        with connect.session(settings.database(database), name="ask for the owner") as connection:
            there = table_format.present(connection)
            return Answer(database, ownership(connection) if there else Ownership(None, False, {}))
    except (Unavailable, SettingsError):
        return None


def require_not_elsewhere(settings: Settings, database: str, gitlab_schema: str) -> None:
    """Raise OwnershipMoved if another database owns the gitlab schema while `database` does not answer.

    For a consumer that waits for its database, which may never come back as the owner.
    """
    others = [
        name
        for name, section in settings.databases.items()
        if name != database and gitlab_schema in section.gitlab_schemas and gitlab_schema not in PER_DATABASE
    ]
    try:
        owner = owning_database(settings, others, gitlab_schema)
    except OwnershipMoved:
        return
    if owner is not None:
        raise OwnershipMoved(
            f"{database} does not answer, and {gitlab_schema} is owned by {owner}",
            remedy="restart it: it follows the owner unless its settings name a database",
        )
