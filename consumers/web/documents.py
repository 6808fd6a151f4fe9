"""The shapes of the console's API that no command has."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from consumers.operations.overview.status_models import MigrationStatus, Shape, SourceStatus
from infra.settings.section import Name
from infra.state.history import REASON_CHARACTERS

_MOST_EVENTS: Final = 1_000

Reason = Annotated[str, StringConstraints(max_length=REASON_CHARACTERS, strip_whitespace=True)]
EventName = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class Problem(Shape):
    """Why a request failed."""

    problem: str
    remedy: str


class TopicStatus(Shape):
    """A topic that some migration reads."""

    name: str
    events: int
    """The sum of the partitions' ends: what was ever written."""
    rate: float
    """Events per second."""
    sources: list[str]
    """The sources that write it."""


class Verified(Shape):
    """What `headrace verify` counted last of a migration."""

    at: datetime
    remaining: int
    """Rows that were left to change."""


class WatchedMigration(MigrationStatus):
    """One migration in one database; its rows are not counted for this."""

    verified: Verified | None = None
    """Null if they were never counted."""


class WatchedSource(SourceStatus):
    """One source."""

    snapshot_eta_seconds: float | None = None
    """Until the snapshot in progress is done, at the pace of the last minute; null if that is unknown."""


class Snapshot(Shape):
    """Everything that the page shows, computed at most once a second for all viewers together."""

    at: datetime
    version: str
    prefix: str
    problems: list[str]
    """Servers that do not answer: what is shown of them is older."""
    migrations: list[WatchedMigration]
    sources: list[WatchedSource]
    topics: list[TopicStatus]


class Curves(Shape):
    """The rate of each migration over the last minutes, as far as someone watched."""

    seconds: float
    """Between two values."""
    curves: Mapping[str, list[float | None]]
    """`database/migration` → events per second, the newest last; null where no one watched."""


class Session(Shape):
    """What a request with this token may do."""

    operator: str | None
    """The name of the token; null without one."""
    changes: bool
    """Whether the console may change anything, with a token."""
    reading_needs_token: bool


class DeadLetter(Shape):
    """One dead letter, as `headrace dead-letters list --json` has it."""

    event: str
    database: str
    topic: str
    partition: int
    offset: int
    reason: str
    run: int
    recorded_at: datetime
    key: Mapping[str, Any]
    """The columns of the row's key, as far as they can be decoded."""


class GivenUpWork(Shape):
    """Work outside the database that was given up."""

    name: str
    reason: str
    since: datetime


class DeadLetters(Shape):
    """What waits for an operator."""

    migration: str
    dead_letters: list[DeadLetter]
    """At most the first thousand."""
    given_up: list[GivenUpWork]


class Wish(Shape):
    """The base of what an operator asks for."""

    database: Name | None = None
    """The database, for a migration that runs once per database."""
    reason: Reason = ""
    """Why; `headrace history` shows it."""


class ReplayWish(Wish):
    """A new run."""

    start: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "beginning"
    """`beginning`, `timestamp:2026-01-31T12:00:00Z` or `lsn:16/B374D848`."""


class PaceWish(Wish):
    """Another pace for running consumers, until it is set to null again."""

    max_rate: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    """Rows changed per second by each consumer, 0 without limit; null: as in the settings."""
    transaction_ms: int | None = Field(default=None, ge=1, le=3_600_000)
    """The target duration of a transaction in milliseconds; null: as in the settings."""


class DeadLetterWish(Wish):
    """Dead letters to retry or to discard."""

    events: list[EventName] = Field(min_length=1, max_length=_MOST_EVENTS)
    """Their names, as listed."""


class Paused(Shape):
    """Whether the migration is paused now."""

    migration: str
    database: str
    paused: bool


class Replayed(Shape):
    """The new run."""

    migration: str
    run: int
    partitions: int


class Paced(Shape):
    """The pace that running consumers follow within a second; null: as in the settings."""

    migration: str
    database: str
    max_rate: float | None
    transaction_ms: int | None


class SettledLetters(Shape):
    """What became of dead letters."""

    migration: str
    applied: int
    unneeded: int
    """The row was already up to date, or the event needs no change."""
    discarded: int
    before: int
    """Settled by another request or command."""
    stays: Mapping[str, str]
    """Event → why it is still a dead letter."""
    taken_up: int = 0
    """Work that consumers try again."""


class Recorded(Shape):
    """What an operator did."""

    at: datetime
    action: str
    subject: str
    actor: str
    via: str
    reason: str | None
    details: Mapping[str, Any]


class Recent(Shape):
    """The last things that operators did in a database, the newest first."""

    database: str
    actions: list[Recorded]
