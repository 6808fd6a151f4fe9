"""The shapes of `headrace status --json`, which the console's API describes and returns as well.

They are a contract: fields may be added, but not renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

State = Literal["waiting", "running", "paused", "throttled", "caught_up", "complete", "given_up", "failed"]
STATES: Final = get_args(State)


class Shape(BaseModel):
    """The base of the models of a document."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields by their docstrings, which pydantic itself would parse at every start."""
        from infra.settings.description.settings_schema import descriptions  # noqa: PLC0415 - only for a schema

        schema = handler(core)
        for name, text in descriptions(cls).items():
            handler.resolve_ref_schema(schema)["properties"][name]["description"] = text
        return schema


class PartitionStatus(Shape):
    """One partition of a topic."""

    topic: str
    partition: int
    offset: int
    """The ledger's offset: all before it is settled."""
    end_offset: int
    """The offset after the topic's last committed record."""
    consumer: str | None = None
    """The consumer that had it last, as `host:pid`; null if none had it yet."""


class MigrationStatus(Shape):
    """One migration in one database."""

    name: str
    gitlab_schema: str
    database: str
    run: int
    """The number of the current run; 0 before the first."""
    state: State
    paused: bool
    complete: bool
    applied: int
    """Rows that it changed in this run."""
    skipped: int
    """Events that needed no change in this run."""
    skip_reasons: Mapping[str, int]
    dead_letters: int
    """Dead letters that wait for an operator."""
    given_up: int
    """Work outside the database that was given up."""
    reported: int
    """Work outside the database that was done with a report."""
    reached: Mapping[str, str]
    """Partition of the work outside the database → how far it is."""
    remaining: int | None
    """Rows left to change; null if they were not counted."""
    remaining_estimated: bool
    rate: float
    """Events per second."""
    eta_seconds: float | None
    """Until the topics' ends are reached, at the present rate; null if that is unknown."""
    members: list[str]
    """The consumers in its group, as `host:pid`."""
    throttled_by: str | None
    """The unhealthy indicators, each with its value and limit."""
    partitions: list[PartitionStatus]
    failed: str | None = None
    """Why the run failed, if it did."""
    max_rate: float = 0
    """The maximum of rows changed per second by each consumer; 0: no limit."""
    transaction_ms: int = 0
    """The target duration of a transaction in milliseconds."""
    error: str | None = None
    """Why some fields are unknown, such as a database that does not answer."""

    def document(self) -> dict[str, Any]:
        """Return it as in `status --json`, where `error` is left out if there is none."""
        return self.model_dump(mode="json", exclude={"error"} if self.error is None else None)


class SnapshotStatus(Shape):
    """The snapshot in progress, or the sum over all that are done."""

    table: str
    """The table, or the number of tables."""
    chunks_done: int
    chunks: int
    """The expected number of chunks."""


class TableStatus(Shape):
    """A table that is being copied, or that is no longer published."""

    table: str
    rows: int
    """Rows copied so far."""
    chunks_done: int
    chunks: int
    stopped: str | None
    """Why it is no longer published."""


class SourceStatus(Shape):
    """One source."""

    name: str
    slot: str | None
    lsn: str | None
    """The commit of the last published transaction."""
    lag_bytes: int | None
    """WAL that is not published yet."""
    lag_seconds: float | None
    """Since the commit of the last published transaction."""
    slot_status: str | None
    """`wal_status` of the slot, or `missing`."""
    retained_bytes: int | None
    """WAL that the server keeps for the slot."""
    lost_in_seconds: int | None
    """Until the slot is lost if no process reads it, at the measured rate of WAL."""
    waits_for: list[str]
    """Standbys that the stream waits for, each with the reason."""
    snapshot: SnapshotStatus | None
    snapshot_throttled_by: str | None = None
    """The health indicators that throttle the copying of tables, each with the reason; null: none does."""
    snapshot_max_mb_per_second: float = 0
    """The maximum of MB that are read per second while tables are copied; 0: no limit."""
    left_bytes: int | None = None
    """WAL that the server may still write before the slot is lost; null if it has no limit."""
    retained_limit_bytes: int | None = None
    """The bound within which the producer keeps `retained_bytes` (`snapshot.max_retained_wal_mb`)."""
    tables: int = 0
    """Tables in the topics, completely or in part."""
    tables_done: int = 0
    copying: list[TableStatus] = []
    """Those that are being copied, or are no longer published."""
