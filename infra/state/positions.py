"""The state of every source: the records of the compacted topic `<prefix>.positions`.

A producer writes them in the same Kafka transaction as the events they describe, so they are never ahead of the events
or behind them. Keys are the source's name, `source/table` for a table's snapshot, `source//gitlab schema` for a gitlab
schema that the source's database no longer owns, and `source///table` for stray writes to a table after that. Each
record has a format (schemas/formats.py): a newer one is refused, an older one upgraded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from infra.kafka.topics import LogReader
from infra.settings.model import KafkaSettings, Settings
from schemas import formats
from schemas.errors import Malformed
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, Position
from schemas.topics import positions_topic


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class StreamState(_Record):
    """The published position of a source's stream.

    Everything up to `commit_lsn`, `ordinal` is in the topics; `confirmed_lsn` is after the last complete transaction
    there: the slot may release WAL up to it. `unseen` are passed transactions that no snapshot was known to see yet
    (only recorded while tables are copied). `ts_ms` is the commit time of the last transaction. `instance` is the
    process that wrote the record: a producer that finds another's there was superseded. `timeline` is the server's for
    these positions; 0: unknown. `log_bytes_per_second` is the rate of WAL over `log_seconds`. `refused_request` is the
    reason why the last request to re-snapshot a table was refused, if it was. `snapshot_throttled_by` are the health
    indicators that throttle the copy of tables, with their reasons; None if none does.
    """

    source: str
    instance: str
    slot: str
    system_identifier: str
    commit_lsn: Lsn
    ordinal: int
    confirmed_lsn: Lsn
    ts_ms: int
    unseen: tuple[int, ...] = ()
    timeline: int = 0
    log_bytes_per_second: float | None = None
    log_seconds: float = 0.0
    refused_request: str | None = None
    snapshot_throttled_by: str | None = None

    @property
    def position(self) -> Position:
        """The position of the last published change."""
        return Position(self.commit_lsn, self.ordinal)


class ChunkState(_Record):
    """A copied range of keys, each key as the text of its columns; see producers.snapshot.chunk_rules.Chunk."""

    after: tuple[str, ...] | None
    upto: tuple[str, ...] | None
    snapshot: str | None = None
    lsn: Lsn | None = None


class ColumnState(_Record):
    """A column in the topic's last records; see producers.source.schema_changes.FollowedColumn."""

    name: str
    number: int
    type_oid: int
    gone: bool = False
    """Whether only earlier records have it."""


class ColumnForm(_Record):
    """A column in the catalog: what its values depend on apart from the rows' events.

    `number` is pg_attribute's attnum, `version` the xmin of its row there, which every ALTER of the column changes.
    `types` are the parts of types that its text depends on, each with its version: labels of enums, attributes of
    composites. `touched`: one of them is newer than the column's own row.
    """

    number: int
    version: int
    collation: int = 0
    generated: bool = False
    types: Mapping[str, str] = {}
    touched: bool = Field(default=False, exclude=True)


class FormState(_Record):
    """What a table's values depend on, read before WAL position `lsn`; see producers.publish.silent_changes.

    `columns` includes those dropped since: the topic's records may still have their values. `storage` is the relation
    files, by the oid of the table or of some partitions; a statement that rewrites rows changes all.
    """

    columns: Mapping[str, ColumnForm] = {}
    storage: Mapping[str, int] = {}
    lsn: Lsn = Lsn(0)

    def differs(self, now: FormState) -> bool:
        """Return whether anything in `now` is new, even if harmless."""
        known = all(self.columns.get(name) == column for name, column in now.columns.items())
        return not known or self.storage != now.storage


class RangeState(_Record):
    """An inclusive range of keys, optionally of one partition; see the producers' KeyRange."""

    first: tuple[str, ...] | None = None
    last: tuple[str, ...] | None = None
    partition: int | None = None


class RereadState(_Record):
    """The progress of copying a range while its events are published; see producers.snapshot.resnapshot_rules.Reread.

    `keys` are those of the last chunk, packed, while its `snapshot` is kept.
    """

    range: RangeState = RangeState()
    after: tuple[str, ...] | None = None
    read: bool = False
    snapshot: str | None = None
    lsn: Lsn | None = None
    keys: str = ""


class IncompleteState(_Record):
    """The rows whose last record lacks a value; see producers.snapshot.incomplete_rows.

    `keys` are still to be read. `read` are the keys of the rows read last, packed, while their `snapshot` is kept.
    """

    keys: tuple[tuple[str, ...], ...] = ()
    snapshot: str | None = None
    lsn: Lsn | None = None
    read: str = ""


class PartitionState(NamedTuple):
    """A partition whose rows and changes are in the topic of its table; see producers.source.partitions.Partition.

    Written as a list, since a table may have ten thousand and its record must stay below Kafka's default of 1 MB.
    """

    oid: int
    links: str
    file: int


class SnapshotState(_Record):
    """The state of a table's snapshot.

    `stopped` is the reason why the table is no longer published: its topic lacks events and must be re-snapshotted from
    scratch. `not_before` is a 64-bit transaction id: no chunk may be read before all below it have ended. `chunks` is
    the expected number, from the planner's estimate of the rows. `form` is what the rows in the topic depend on, or
    will once all of `asked` is read. `done`: the topic has the whole table. `reread` is set while it is copied by the
    rules of producers.snapshot.resnapshot_rules, again or (not `done`) for the first time, and `asked` are the ranges
    to read after that. `incomplete` are rows to read as well. `from_scratch`: the topic is to be emptied and the table
    re-snapshotted. `from_nothing`: the topic has no row of a copy by those rules yet, or only rows of its first chunk,
    which the stream has not passed. `published` is how its stream was published all along; see
    producers.source.publication. `partitions` are those with rows in the topic, as in the catalog once all transactions
    below the 64-bit id `partitions_seen` had ended. `order` names the order of its ranges
    (infra.postgres.key_order.order_name). `topic_partitions` is the number of the topic's partitions that keys are
    spread over; None: unknown. `registered` are the ids of the schemas of the topic's records, each with its schema's
    fingerprint (infra.schema_registry.registry_identity); earlier ids are missing if an older headrace registered them.
    """

    source: str
    table: str
    topic: str
    done: bool = False
    not_before: int = 0
    rows: int = 0
    chunks_done: int = 0
    chunks: int = 0
    copied: tuple[ChunkState, ...] = ()
    columns: tuple[ColumnState, ...] = ()
    form: FormState = FormState()
    stopped: str | None = None
    reread: RereadState | None = None
    from_nothing: bool = False
    asked: tuple[RangeState, ...] = ()
    incomplete: IncompleteState = IncompleteState()
    from_scratch: bool = False
    partitions: tuple[PartitionState, ...] = ()
    partitions_seen: int = 0
    published: str | None = None
    order: str = ""
    topic_partitions: int | None = None
    registered: Mapping[int, str] = {}

    @property
    def under_way(self) -> bool:
        """Whether rows of the table are being copied, or are to be copied."""
        return not self.done or self.reread is not None or bool(self.asked) or self.from_scratch


class HandoverState(_Record):
    """The position where a source stopped publishing a gitlab schema because `owner` took it over.

    All that the source published of the schema is in the topics before this record. `snapshots` is the progress of its
    tables' snapshots: the new owner's database is a physical copy with the same keys, transaction ids and LSNs.
    """

    source: str
    gitlab_schema: str
    owner: str
    epoch: int
    commit_lsn: Lsn
    ordinal: int
    confirmed_lsn: Lsn
    snapshots: tuple[SnapshotState, ...] = ()


class StrayState(_Record):
    """Counts of stray writes to a table in the source's database while another one owned it; no topic has them.

    They cover the stream since `since_ms`. `last_ms` is the commit time of the last write; both are milliseconds since
    1970. An update of the key counts as one. `removes`: the table may lack a key that its topic has.
    """

    source: str
    table: str
    gitlab_schema: str
    since_ms: int
    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    truncates: int = 0
    last_ms: int | None = None
    removes: bool = False

    @property
    def writes(self) -> int:
        """The number of changes; a truncate counts as one."""
        return self.inserts + self.updates + self.deletes + self.truncates


@dataclass(frozen=True)
class SourceState:
    """The state of one source in the topic.

    `handovers` are the gitlab schemas that it no longer publishes, `strays` the writes to their tables since.
    """

    stream: StreamState | None = None
    snapshots: Mapping[str, SnapshotState] = field(default_factory=dict)
    handovers: Mapping[str, HandoverState] = field(default_factory=dict)
    strays: Mapping[str, StrayState] = field(default_factory=dict)


def encode(state: BaseModel) -> bytes:
    """Return the value of a state's record."""
    document = formats.POSITIONS.write(state.model_dump(mode="json"))
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


S = TypeVar("S", StreamState, SnapshotState, HandoverState, StrayState)


def decode(kind: type[S], key: str, value: bytes) -> S:
    """Return the state in a record's value, of this or an older format.

    Raises NewerFormat, and Malformed for a value that is no such record.
    """
    where = f"record {key} of the positions topic"
    try:
        return kind.model_validate(formats.POSITIONS.read(json.loads(value), where))
    except ValueError as error:
        raise Malformed(
            f"{where} was not written by headrace", remedy="stop other programs from writing to that topic"
        ) from error


class Positions:
    """Reads `<prefix>.positions`; each call to `sources` continues where the last one stopped."""

    def __init__(self, prefix: str, settings: KafkaSettings) -> None:
        self._log = LogReader(settings, positions_topic(prefix))
        self._streams: dict[str, StreamState] = {}
        self._snapshots: dict[str, dict[str, SnapshotState]] = {}
        self._handovers: dict[str, dict[str, HandoverState]] = {}
        self._strays: dict[str, dict[str, StrayState]] = {}

    def sources(self) -> dict[str, SourceState]:
        """Return source name → its current committed state."""
        for message in self._log.read():
            key = (message.key() or b"").decode(errors="replace")
            source, _, table = key.partition("/")
            value = message.value()
            if table.startswith("//"):
                strays = self._strays.setdefault(source, {})
                if value is None:
                    strays.pop(table[2:], None)
                else:
                    strays[table[2:]] = decode(StrayState, key, value)
            elif table.startswith("/"):
                given = self._handovers.setdefault(source, {})
                if value is None:
                    given.pop(table[1:], None)
                else:
                    given[table[1:]] = decode(HandoverState, key, value)
            elif table:
                tables = self._snapshots.setdefault(source, {})
                if value is None:
                    tables.pop(table, None)
                else:
                    tables[table] = decode(SnapshotState, key, value)
            elif value is None:
                self._streams.pop(source, None)
            else:
                self._streams[source] = decode(StreamState, key, value)
        return {
            name: SourceState(
                self._streams.get(name),
                dict(self._snapshots.get(name, {})),
                dict(self._handovers.get(name, {})),
                dict(self._strays.get(name, {})),
            )
            for name in sorted(
                self._streams.keys() | self._snapshots.keys() | self._handovers.keys() | self._strays.keys()
            )
        }


def read_sources(settings: Settings) -> dict[str, SourceState]:
    """Return every source's current committed state."""
    return Positions(settings.prefix, settings.kafka).sources()


def record_key(source: str, table: str | None = None) -> bytes:
    """Return the key of the record of a source, or of one of its tables."""
    return f"{source}/{table}".encode() if table else source.encode()


def handover_key(source: str, gitlab_schema: str) -> bytes:
    """Return the key of the record of a source's handover of a gitlab schema."""
    return f"{source}//{gitlab_schema}".encode()


def stray_key(source: str, table: str) -> bytes:
    """Return the key of the record of stray writes to a table."""
    return f"{source}///{table}".encode()
