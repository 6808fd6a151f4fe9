"""A switchover's records on its two databases: gitlab schemas, their owners, and the last move of each.

`side` reads them; `states` interprets them, and `rules` derives the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import psycopg

from infra.postgres import table_format
from infra.postgres.control import Owner, Ownership, ownership
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, last_details, record_action
from producers.source import slots
from schemas.errors import Refused, UsageError
from schemas.gitlab_schemas import PER_DATABASE
from schemas.lazy_dataclass import dataclass

_RECORDS: Final = "SELECT gitlab_schema, id, source, destination, epoch, stage, claim FROM headrace.switchovers"


class NotMovable(Refused):
    """See docs/how-to/switchover.md."""


class Stage(StrEnum):
    """The progress of a gitlab schema's last switchover, by the database that has the record."""

    CLOSED = "closed"
    TAKEN_BACK = "taken back"
    RELEASED = "released"
    OPENED = "opened"


@dataclass(frozen=True)
class Record:
    """The last switchover of a gitlab schema; `epoch` is the epoch of its change of owner.

    `claim` is written by the one copy that becomes the owner, after its promotion.
    """

    id: UUID
    source: str
    destination: str
    epoch: int
    stage: Stage
    claim: UUID | None = None


@dataclass(frozen=True)
class Move:
    """The gitlab schemas to move from the database `source` to `destination`, by their names in the settings."""

    gitlab_schemas: tuple[str, ...]
    source: str
    destination: str


@dataclass(frozen=True)
class Side(Ownership):
    """The state of one of the two databases, as it records it."""

    system: str
    records: Mapping[str, Record] = field(default_factory=dict)

    def record(self, gitlab_schema: str) -> Record | None:
        """Return the record of the switchover that set the gitlab schema's owner; None: no switchover did."""
        found, owner = self.records.get(gitlab_schema), self.owners.get(gitlab_schema)
        if found is None or owner is None or found.epoch != owner.epoch:
            return None
        given = found.source if found.stage is Stage.TAKEN_BACK else found.destination
        return found if given == owner.name else None


@dataclass(frozen=True)
class View:
    """The current state of both sides. `slot`: the new owner's producer has its slot, or needs none."""

    move: Move
    old: Side
    new: Side
    same_server: bool
    slot: bool


@dataclass(frozen=True)
class Changes:
    """Rows to write on one side, in one transaction; `name` is the database's new name, None: unchanged."""

    owners: Mapping[str, Owner]
    records: Mapping[str, Record]
    name: str | None = None


def require_settings(settings: Settings, move: Move) -> None:
    """Raise UsageError unless the settings have both databases, and the new one lists the gitlab schemas."""
    settings.database(move.source)
    listed = settings.database(move.destination).gitlab_schemas
    if move.source == move.destination:
        raise UsageError(f"{move.source} cannot be both ends of a switchover")
    for gitlab_schema in move.gitlab_schemas:
        if gitlab_schema in PER_DATABASE:
            raise UsageError(f"{gitlab_schema} does not move: every database has its own", remedy="omit it")
        if gitlab_schema not in listed:
            raise UsageError(
                f"database {move.destination} does not list {gitlab_schema}",
                remedy=f"add it to databases.{move.destination}.gitlab_schemas",
            )


def side(connection: psycopg.Connection[Any], database: str) -> Side:
    """Return the state of `database`, within the connection's transaction.

    Raises NewerFormat if a newer headrace made its tables, and NotMovable if they are missing.
    """
    table_format.require(connection, database)
    try:
        found = ownership(connection)
        records = {
            label: Record(id, source, destination, epoch, Stage(stage), claim)
            for label, id, source, destination, epoch, stage, claim in connection.execute(_RECORDS)
        }
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise NotMovable(
            f"database {database} lacks headrace's tables: {error.diag.message_primary}",
            remedy=f"start `headrace produce {database}` once, or run what `headrace init --sql` prints",
        ) from error
    return Side(found.name, found.standby, found.owners, slots.system_identifier(connection), records)


def write(connection: psycopg.Connection[Any], changes: Changes) -> None:
    """Write the rows within the connection's transaction, which holds their locks."""
    for gitlab_schema, owner in changes.owners.items():
        connection.execute(
            "UPDATE headrace.schema_ownership SET owner = %s, epoch = %s, changed_at = now()"
            " WHERE gitlab_schema = %s AND (owner, epoch) IS DISTINCT FROM (%s, %s)",
            (*owner, gitlab_schema, *owner),
        )
    for gitlab_schema, record in changes.records.items():
        connection.execute(
            "INSERT INTO headrace.switchovers (gitlab_schema, id, source, destination, epoch, stage, claim)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (gitlab_schema) DO UPDATE SET (id, source, destination,"
            " epoch, stage, claim, changed_at) = (excluded.id, excluded.source, excluded.destination, excluded.epoch,"
            " excluded.stage, excluded.claim, now())",
            (gitlab_schema, record.id, record.source, record.destination, record.epoch, record.stage, record.claim),
        )
    if changes.name is not None:
        connection.execute(
            "UPDATE headrace.database SET name = %s, opened_lsn = pg_current_wal_insert_lsn()", (changes.name,)
        )


def record_step(connection: psycopg.Connection[Any], move: Move, step: str, actor: Actor) -> None:
    """Record a step of the move, within the transaction that did it or right after it."""
    _record(connection, move, move.gitlab_schemas, step, actor)


def record_found(connection: psycopg.Connection[Any], move: Move, steps: Iterable[str], actor: Actor) -> None:
    """Record those of `steps`, all of them done, that no command has recorded since the move was closed.

    Other tooling did them, or a command that was killed before it could record them.
    """
    for step in steps:
        left = [each for each in move.gitlab_schemas if step not in _recorded(connection, move, each)]
        if left:
            _record(connection, move, left, step, actor, done_before=True)


def _recorded(connection: psycopg.Connection[Any], move: Move, gitlab_schema: str) -> set[Any]:
    """Return the steps of the move that are recorded since its last close."""
    found: set[Any] = set()
    for details in last_details(connection, OperatorAction.SWITCHOVER, gitlab_schema):
        if (details.get("source"), details.get("destination")) == (move.source, move.destination):
            if details.get("step") == "close":
                break
            found.add(details.get("step"))
    return found


def _record(
    connection: psycopg.Connection[Any],
    move: Move,
    gitlab_schemas: Sequence[str],
    step: str,
    actor: Actor,
    **more: bool,
) -> None:
    record_action(
        connection,
        OperatorAction.SWITCHOVER,
        gitlab_schemas,
        actor,
        if_permitted=True,
        step=step,
        source=move.source,
        destination=move.destination,
        **more,
    )
