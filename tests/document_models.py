"""Models of the documents that commands print with --json; tests/documents.py says which command prints which.

Fields of these documents may be added, which is a change here, but are not renamed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Partition(Document):
    topic: str
    partition: int
    offset: int
    end_offset: int
    consumer: str | None


class StatusOfMigration(Document):
    name: str
    gitlab_schema: str
    database: str
    run: int
    state: Literal["waiting", "running", "paused", "throttled", "caught_up", "complete", "given_up", "failed"]
    paused: bool
    complete: bool
    applied: int
    skipped: int
    skip_reasons: dict[str, int]
    dead_letters: int
    given_up: int
    reported: int
    reached: dict[str, str]
    remaining: int | None
    remaining_estimated: bool
    rate: float
    eta_seconds: float | None
    members: list[str]
    throttled_by: str | None
    partitions: list[Partition]
    failed: str | None
    max_rate: float
    transaction_ms: int
    error: str | None = None


class Snapshot(Document):
    table: str
    chunks_done: int
    chunks: int


class TableOfSource(Document):
    table: str
    rows: int
    chunks_done: int
    chunks: int
    stopped: str | None


class StatusOfSource(Document):
    name: str
    slot: str | None
    lsn: str | None
    lag_bytes: int | None
    lag_seconds: float | None
    slot_status: str | None
    retained_bytes: int | None
    lost_in_seconds: int | None
    waits_for: list[str]
    snapshot: Snapshot | None
    snapshot_throttled_by: str | None
    snapshot_max_mb_per_second: float
    left_bytes: int | None
    retained_limit_bytes: int | None
    tables: int
    tables_done: int
    copying: list[TableOfSource]


class GivenTable(Document):
    table: str
    guarded: bool
    watched: bool
    writes: int | None
    inserts: int
    updates: int
    deletes: int
    truncates: int
    since: str | None
    last: str | None


class GivenAway(Document):
    database: str
    gitlab_schema: str
    owner: str
    tables: list[GivenTable]


class Status(Document):
    migrations: list[StatusOfMigration]
    sources: list[StatusOfSource]
    given_away: list[GivenAway]


class Finding(Document):
    where: str
    problem: str
    remedy: str
    shown: list[str]


class Slot(Document):
    source: str
    slot: str
    status: str
    active: bool
    retained_bytes: int
    left_bytes: int | None
    limit: str | None
    bytes_per_second: int | None
    measured_seconds: float | None
    lost_in_seconds: int | None
    cause: str | None
    at_risk: bool


class Check(Document):
    findings: list[Finding]
    slots: list[Slot]
    advice: list[Finding]


class Totals(Document):
    migration: str
    events: int
    applied: int
    skipped: int
    dead_letters: int
    transactions: int


class DryRun(Document):
    migration: str
    database: str
    dry_run: Literal[True]
    events: int
    changes: int
    skipped: dict[str, int]
    dead_letters: dict[str, int]
    remaining: int


class Finalized(Totals):
    complete: bool
    given_up: int


class Paused(Document):
    migration: str
    database: str
    paused: bool


class Start(Document):
    topic: str
    partition: int
    offset: int


class Replay(Document):
    migration: str
    run: int
    partitions: int
    starts: list[Start]
    selection: dict[str, list[str]]


class Verified(Document):
    migration: str
    database: str
    remaining: int
    given_up: int


class Compared(Document):
    table: str
    database: str
    rows: int
    looked_at_again: int
    missing: list[dict[str, Any]]
    extra: list[dict[str, Any]]
    differing: list[dict[str, Any]]
    columns: list[list[str]]
    unsettled: int


class StaleRecord(Document):
    database: str
    migration: str
    gitlab_schema: str
    owner: str
    run: int
    applied: int
    kept: str | None


class Cleanup(Document):
    removed: list[StaleRecord]
    stale: list[StaleRecord]


class Route(Document):
    name: str
    homes: list[str]


class DeadLetter(Document):
    event: str
    database: str
    topic: str
    partition: int
    offset: int
    reason: str
    run: int
    recorded_at: str
    key: dict[str, Any]


class GivenUp(Document):
    name: str
    reason: str
    since: str


class DeadLetters(Document):
    migration: str
    dead_letters: list[DeadLetter]
    given_up: list[GivenUp]


class Settled(Document):
    migration: str
    applied: int
    unneeded: int
    discarded: int
    before: int
    stays: dict[str, str]


class Retried(Settled):
    taken_up: int


class Step(Document):
    what: str
    statement: str
    tries: int
    seconds: float


class Release(Document):
    migration: str
    database: str
    table: str
    release: str


class Executed(Release):
    done: list[Step]


class Filled(Release):
    events: int
    applied: int
    skipped: int
    dead_letters: int
    transactions: int


class Withdrawn(Release):
    run: int | None


class Listed(Document):
    name: str
    origin: str
    enabled: bool
    gitlab_schema: str
    tables: list[str]
    version: int
    description: str


class Broken(Document):
    name: str
    origin: str
    place: str
    problem: str
    remedy: str


class Migrations(Document):
    migrations: list[Listed]
    broken: list[Broken]


class Up(Document):
    bootstrap_servers: str
    dsn: str
    pid_file: str
    data_dir: str
    pids: dict[str, int]


class Down(Document):
    stopped: bool
    data_dir: str
    data_removed: bool


class Requested(Document):
    source: str
    table: str
    from_scratch: bool
    answer: str


class HistoryEntry(Document):
    id: str
    request: str
    at: str
    database: str
    action: str
    subject: str
    actor: str
    via: str
    reason: str | None
    details: dict[str, Any]
    role: str


class MissingDatabase(Document):
    database: str
    problem: str


class Recorded(Document):
    entries: list[HistoryEntry]
    missing: list[MissingDatabase]


class Reported(Document):
    migration: str
    database: str
    run: int
    file: str


class SwitchoverStep(Document):
    name: str
    what: str
    done: bool


class SwitchoverState(Document):
    gitlab_schema: str
    state: str


class Switchover(Document):
    gitlab_schemas: list[str]
    source: str = Field(alias="from")
    to: str
    complete: bool
    ends: str
    states: list[SwitchoverState]
    next: str | None
    refused: str | None
    remedy: str | None
    steps: list[SwitchoverStep]


class Guarded(Document):
    database: str
    installed: list[str]
    already: list[str]


class Unguarded(Document):
    database: str
    removed: list[str]
