"""Where every source stands: the records of the compacted topic `<prefix>.positions`.

A producer writes them in the same Kafka transaction as the events they speak of, so they are never ahead of the
events or behind them. Keys are the source's name, `source/table` for a table's snapshot, `source//gitlab schema` for
a gitlab schema that the source's database gave away, and `source///table` for what was written to a table after that.
Each says its format (schemas/formats.py): a record of a newer one is refused, of an older one brought forward.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from infra.kafka.topics import LogReader
from infra.settings.model import KafkaSettings, Settings
from schemas import formats
from schemas.errors import Malformed
from schemas.positions import Lsn, Position
from schemas.topics import positions_topic


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class StreamState(_Record):
    """How far a source's stream is published.

    Everything up to `commit_lsn`, `ordinal` is in the topics; `confirmed_lsn` is behind the last transaction that is
    there as a whole, and what the slot may forget. `unseen` are transactions passed that no snapshot was known to
    see yet (only noted while tables are copied). `ts_ms` is the commit time of the last transaction. `instance` is
    the process that wrote the record: a producer that finds another's there was taken over. `timeline` is the server's,
    on which these positions are; 0: not known. `log_bytes_per_second` is how fast its log grew over `log_seconds`.
    `refused_request` is why the last request to re-snapshot a table was refused; None: it was not.
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

    @property
    def position(self) -> Position:
        """The last change that is published."""
        return Position(self.commit_lsn, self.ordinal)


class ChunkState(_Record):
    """A copied range of keys, each key as the text of its columns; see producers.snapshot.chunk_rules.Chunk."""

    after: tuple[str, ...] | None
    upto: tuple[str, ...] | None
    snapshot: str | None = None
    lsn: Lsn | None = None


class ColumnState(_Record):
    """A column as the topic's last records have it; see producers.source.schema_changes.FollowedColumn."""

    name: str
    number: int
    type_oid: int


class ColumnForm(_Record):
    """A column as the catalog has it: what its values are made of beside the rows' own events.

    `number` is pg_attribute's attnum, `version` the xmin of its row there, which every ALTER of the column moves.
    `types` are the parts of the types that its text depends on, each with what moves when the part changes: labels of
    enums, attributes of composites. `touched` says that one of them is newer than the column's own row.
    """

    number: int
    version: int
    collation: int = 0
    generated: bool = False
    types: Mapping[str, str] = {}
    touched: bool = Field(default=False, exclude=True)


class FormState(_Record):
    """What all values of a table are made of, read before the log position `lsn`; see producers.publish.silent_changes.

    `columns` has those too that were dropped since: the topic's records may still have their values. `storage` is the
    files that have the rows, by the oid of the table or of some partitions; a statement that rewrites rows changes all.
    """

    columns: Mapping[str, ColumnForm] = {}
    storage: Mapping[str, int] = {}
    lsn: Lsn = Lsn(0)

    def differs(self, now: FormState) -> bool:
        """Whether anything that `now` tells is new, be it harmless."""
        known = all(self.columns.get(name) == column for name, column in now.columns.items())
        return not known or self.storage != now.storage


class RangeState(_Record):
    """A range of keys, both ends included, perhaps of one partition; see the producers' KeyRange."""

    first: tuple[str, ...] | None = None
    last: tuple[str, ...] | None = None
    partition: int | None = None


class RereadState(_Record):
    """How far a range is copied whose events go on being published; see producers.snapshot.resnapshot_rules.Reread.

    `keys` are those of the last chunk, packed, as long as its `snapshot` is remembered.
    """

    range: RangeState = RangeState()
    after: tuple[str, ...] | None = None
    read: bool = False
    snapshot: str | None = None
    lsn: Lsn | None = None
    keys: str = ""


class IncompleteState(_Record):
    """The rows whose last record leaves out a value; see producers.snapshot.incomplete_rows.

    `keys` are those still to be read. `read` are the keys of the rows that were read last, packed, as long as their
    `snapshot` is remembered.
    """

    keys: tuple[tuple[str, ...], ...] = ()
    snapshot: str | None = None
    lsn: Lsn | None = None
    read: str = ""


class PartitionState(NamedTuple):
    """A partition whose rows and changes are in the topic of its table; see producers.source.partitions.Partition.

    Written as a list, since a table may have ten thousand and its record has to stay below Kafka's usual megabyte.
    """

    oid: int
    links: str
    file: int


class SnapshotState(_Record):
    """How far a table's snapshot is.

    `stopped` says why nothing more of the table is published: its topic lacks events and has to be made anew.
    `not_before` is a 64-bit transaction id: no chunk may be read before all below it have ended. `chunks` counts those
    expected, from the planner's estimate of the rows. `form` is what the rows in its topic were made of, or will have
    been once all that is `asked` is read. `done` says that the topic has all of the table. `reread` is there while it
    is copied by the rules of producers.snapshot.resnapshot_rules, be it again or (not `done`) for the first time, and
    `asked` are the ranges to be read after that. `incomplete` are rows that are read besides. `anew` says that the
    topic is to be emptied, and then read again. `from_nothing` says that the topic has no row of a copy by those rules
    yet, or only rows of its first chunk, which the stream has not passed. `published` is how its stream was published
    all along; see producers.source.publication. `partitions` are those of which the topic has the rows, as the catalog
    had them once all transactions below the 64-bit id `partitions_seen` ended. `order` names what its ranges are
    compared by (infra.postgres.key_order.order_name). `topic_partitions` is over how many of the topic's the keys are
    spread; None: that was not noted.
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
    anew: bool = False
    partitions: tuple[PartitionState, ...] = ()
    partitions_seen: int = 0
    published: str | None = None
    order: str = ""
    topic_partitions: int | None = None

    @property
    def under_way(self) -> bool:
        """Whether rows of the table are being copied, or are to be."""
        return not self.done or self.reread is not None or bool(self.asked) or self.anew


class HandoverState(_Record):
    """Where a source stopped to publish a gitlab schema, because its database gave it to `owner`.

    Whatever the source published of the schema is in the topics before this record. `snapshots` is how far its tables
    were copied there: the new owner's database is a physical copy, in which the same keys, transaction ids and LSNs
    hold.
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
    """What was written to a table in the source's database while another one owned it; none of it is in a topic.

    All of it since `since_ms`, as far as the stream is read. `last_ms` is the commit time of the last; both are
    milliseconds since 1970. An update counts as one also where it changed the key; `removes` says whether the table may
    lack a key that its topic has.
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
        """How many changes there were; a truncate is one."""
        return self.inserts + self.updates + self.deletes + self.truncates


@dataclass(frozen=True)
class SourceState:
    """What the topic says of one source.

    `handovers` are the gitlab schemas that it publishes no more, `strays` the writes to their tables since.
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
    """Return the state in a record's value, whichever format it was written in.

    Raises NewerFormat, and Malformed for what is no such record.
    """
    where = f"record {key} of the positions topic"
    try:
        return kind.model_validate(formats.POSITIONS.read(json.loads(value), where))
    except ValueError as error:
        raise Malformed(f"{where} is not one of headrace's", remedy="take away what else writes that topic") from error


class Positions:
    """Reads `<prefix>.positions`; each call to `sources` reads on from where the last one stopped."""

    def __init__(self, prefix: str, settings: KafkaSettings) -> None:
        self._log = LogReader(settings, positions_topic(prefix))
        self._streams: dict[str, StreamState] = {}
        self._snapshots: dict[str, dict[str, SnapshotState]] = {}
        self._handovers: dict[str, dict[str, HandoverState]] = {}
        self._strays: dict[str, dict[str, StrayState]] = {}

    def sources(self) -> dict[str, SourceState]:
        """Return source name → its state, as committed now."""
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
    """Return every source's state as committed now."""
    return Positions(settings.prefix, settings.kafka).sources()


def record_key(source: str, table: str | None = None) -> bytes:
    """Return the key of a source's record, or of its table's."""
    return f"{source}/{table}".encode() if table else source.encode()


def handover_key(source: str, gitlab_schema: str) -> bytes:
    """Return the key of the record that says where a source gave a gitlab schema away."""
    return f"{source}//{gitlab_schema}".encode()


def stray_key(source: str, table: str) -> bytes:
    """Return the key of the record that says what was written to a table after it was given away."""
    return f"{source}///{table}".encode()
