"""Records who did what to a migration or source, when and why, in `headrace.history` of the database concerned.

An action that is a transaction there is recorded in that transaction: if the process is killed, both are there or
neither. Anything else, such as a promotion, is recorded right after it, or once a later command finds it done. Roles
may only add to the table.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from infra.postgres import connect, table_format
from infra.postgres.parameters import storable
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import DatabaseUnavailable, UsageError
from schemas.lazy_dataclass import dataclass

Connection = psycopg.Connection[Any]

REASON_CHARACTERS: Final = 1_000
"""The longest reason."""

_THERE: Final = "SELECT pg_catalog.to_regclass('headrace.history') IS NOT NULL"
_PERMITTED: Final = "SELECT pg_catalog.has_table_privilege('headrace.history', %s)"
_INSERT: Final = """
    INSERT INTO headrace.history (subject, request, action, actor, via, reason, details)
    SELECT subject, %s, %s, %s, %s, %s, %s FROM unnest(%s::text[]) AS subject
"""
_LAST: Final = """
    SELECT details FROM headrace.history
     WHERE action OPERATOR(pg_catalog.=) %s AND subject OPERATOR(pg_catalog.=) %s ORDER BY at DESC, id LIMIT 100
"""
_VERIFIED: Final = """
    SELECT DISTINCT ON (subject) subject, at, (details OPERATOR(pg_catalog.->>) 'remaining')::bigint
      FROM headrace.history
     WHERE action OPERATOR(pg_catalog.=) 'verify' AND details OPERATOR(pg_catalog.?) 'remaining'
     ORDER BY subject, at DESC
"""
_READ: Final = """
    SELECT id, at, action, subject, actor, via, reason, details, role, request
      FROM headrace.history
     WHERE (%(subjects)s::text[] IS NULL OR subject OPERATOR(pg_catalog.=) ANY (%(subjects)s))
       AND (%(since)s::timestamptz IS NULL OR at OPERATOR(pg_catalog.>=) %(since)s)
     ORDER BY at DESC, id LIMIT %(limit)s
"""


class OperatorAction(StrEnum):
    """What an operator can do; the subject is a migration unless noted."""

    PAUSE = "pause"
    RESUME = "resume"
    REPLAY = "replay"
    RETRY = "retry"
    """Of one dead letter, or of work that was given up."""
    DISCARD = "discard"
    PACE = "pace"
    """Another rate or transaction time while it runs."""
    SCHEMA = "schema"
    """A step of a release that alters the table."""
    VERIFY = "verify"
    """Of a migration or a table, which only reads: recorded with what it found."""
    REPAIR = "repair"
    """Rows of a table that differed from its topic; the subject is the table."""
    SNAPSHOT = "snapshot"
    """Of a table."""
    START_OVER = "start over"
    """Of a source."""
    SWITCHOVER = "switchover"
    """A step of the move of a gitlab schema."""
    GUARD = "guard"
    """Of a table."""
    UNGUARD = "unguard"
    """Of a table."""
    CLEANUP = "cleanup"


class Via(StrEnum):
    """What the operator used."""

    COMMAND = "command"
    CONSOLE = "console"


@dataclass(frozen=True)
class Actor:
    """The operator of one command or request: a name, such as `alice@host` or a token's, and the reason, if given.

    Records of one command have the same `request`. Raises UsageError for a reason that cannot be stored.
    """

    name: str
    reason: str | None = None
    via: Via = Via.COMMAND
    request: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", " ".join((self.reason or "").split()) or None)
        for text in (self.name, self.reason or ""):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UsageError("the reason is not valid UTF-8", remedy="write it in UTF-8") from error
            if "\0" in text:
                raise UsageError("the reason has a zero character", remedy="omit it")
        if len(self.reason or "") > REASON_CHARACTERS:
            raise UsageError(
                f"the reason has {len(self.reason or ''):,} characters",
                remedy=f"write at most {REASON_CHARACTERS:,}, such as a link to the change request",
            )


def operator(reason: str | None = None) -> Actor:
    """Return the operating system's user of this process as the actor, such as `alice@host`.

    With sudo also who called it, `root@host (sudo by alice)`, which is what sudo says and no proof.
    """
    name = f"{_user()}@{socket.gethostname()}"
    called_by = os.environ.get("SUDO_USER", "")
    return Actor(f"{name} (sudo by {called_by})" if called_by.isprintable() and called_by else name, reason)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        return f"uid {os.geteuid()}"


def record_action(
    connection: Connection,
    action: OperatorAction,
    subjects: Sequence[str],
    actor: Actor | None,
    *,
    if_permitted: bool = False,
    **details: Any,
) -> None:
    """Record an action on each of `subjects` in the connection's transaction, or in one of its own without any.

    `details` are values that JSON has. Without an actor it was this process's user. A database whose tables an older
    headrace created lacks the table until the next service starts there: then the action is only logged, since a
    switchover must not fail halfway because of it. `if_permitted` does the same for a role that may not add to the
    table, such as the owner of an application's tables. Driver errors pass through.
    """
    done_by = actor or operator()
    known = connection.execute(_THERE).fetchone() == (True,)
    if not known or (if_permitted and not _permitted(connection, "INSERT")):
        if action is not OperatorAction.VERIFY:  # which only reads, perhaps before any service created the tables
            log.get(actor=done_by.name).warning("action not recorded", action=action.value, subjects=list(subjects))
        return
    connection.execute(
        _INSERT,
        (
            done_by.request,
            action.value,
            storable(connection, done_by.name),
            done_by.via.value,
            done_by.reason and storable(connection, done_by.reason),
            Jsonb(details),
            list(subjects),
        ),
    )


def last_details(connection: Connection, action: OperatorAction, subject: str) -> list[Mapping[str, Any]]:
    """Return the details of the last 100 such actions on `subject`, newest first.

    Empty where the table is missing, or for a role that may not read it. Driver errors pass through.
    """
    if connection.execute(_THERE).fetchone() != (True,) or not _permitted(connection, "SELECT"):
        return []
    return [details for (details,) in connection.execute(_LAST, (action.value, subject))]


def last_verifications(connection: Connection) -> dict[str, tuple[datetime, int]]:
    """Return migration → when `headrace verify` counted the rows that it had left last, and how many; one statement.

    Empty where the table is missing, for a role that may not read it, or if it takes longer than the session's timeout.
    Other driver errors pass through.
    """
    try:
        found = connection.execute(_VERIFIED).fetchall()
    except (
        psycopg.errors.UndefinedTable,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.QueryCanceled,
    ):
        return {}
    return {name: (at, left) for name, at, left in found}


def _permitted(connection: Connection, privilege: str) -> bool:
    return connection.execute(_PERMITTED, (privilege,)).fetchone() == (True,)


@dataclass(frozen=True)
class HistoryEntry:
    """A recorded action; `at` is by the server's clock, and `role` is the session's role in the database.

    `action` and `via` are texts, since a newer headrace may record others. `database` is the one, by its name in the
    settings, in which it was found.
    """

    database: str
    id: UUID
    at: datetime
    action: str
    subject: str
    actor: str
    via: str
    reason: str | None
    details: Mapping[str, Any]
    role: str
    request: UUID

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it, with the time in ISO 8601, UTC."""
        return {
            **asdict(self),
            "id": str(self.id),
            "request": str(self.request),
            "at": self.at.astimezone(UTC).isoformat(),
        }


@dataclass(frozen=True)
class History:
    """Actions, newest last; `missing` are the databases that did not answer, each with the reason."""

    entries: Sequence[HistoryEntry]
    missing: Mapping[str, str] = field(default_factory=dict)


def read_history(
    connection: Connection,
    *,
    database: str = "",
    subjects: Sequence[str] = (),
    since: datetime | None = None,
    limit: int = 1_000,
) -> list[HistoryEntry]:
    """Return the last `limit` actions, newest last: all, or those on one of `subjects`, and from `since` on.

    `database` is what the entries have as theirs. Empty where the table is missing. Raises NewerFormat.
    """
    if not table_format.present(connection) or connection.execute(_THERE).fetchone() != (True,):
        return []
    found = connection.execute(_READ, {"subjects": list(subjects) or None, "since": since, "limit": limit}).fetchall()
    return [HistoryEntry(database, *row) for row in reversed(found)]


def whole_history(
    settings: Settings, *, subjects: Sequence[str] = (), since: datetime | None = None, limit: int = 1_000
) -> History:
    """Return the last `limit` actions in all databases of the settings, as `read_history` does for one.

    An action that a copy has from its primary is there once. Raises DatabaseUnavailable if no database answers.
    """
    found: dict[UUID, HistoryEntry] = {}
    missing: dict[str, str] = {}
    for name, section in settings.databases.items():
        try:
            with connect.session(section, name="history") as connection:
                for entry in read_history(connection, database=name, subjects=subjects, since=since, limit=limit):
                    found.setdefault(entry.id, entry)
        except DatabaseUnavailable as error:
            missing[name] = error.problem
            if len(missing) == len(settings.databases):
                raise
    ordered = sorted(found.values(), key=lambda entry: (entry.at, entry.id))
    return History(ordered[-limit:], missing)
