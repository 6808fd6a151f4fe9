"""A model topic: events of a table, numbered, as the records of a producer; and the migration that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Migration, Options
from consumers.ledger.progress import Place
from schemas.avro import value_schema
from schemas.codec.encoder import Encoder
from schemas.events import ChangeEvent, Column, Op, Origin, Relation
from schemas.positions import Lsn
from tests.consumers.model.target import Transaction

RELATION: Final = Relation(
    16_400, "public", "t", "d", (Column("id", 23), Column("n", 23), Column("state", 25)), identity_columns=("id",)
)
SCHEMA: Final = value_schema(RELATION, "gitlab_main")
PLACES: Final = (Place("t", 0), Place("t", 1))
KEYS: Final = range(6)
_WRAP: Final = 1 << 32
_ENCODERS: Final = {
    name: Encoder(
        RELATION, "gitlab_main", ("id",), origin=Origin(name, name), value_schema_id=3, key_schema_id=4, compiled=False
    )
    for name in ("first", "second")
}


@dataclass(eq=False)
class Event:
    """A row's change, numbered: `number` is in the event's column `n`."""

    number: int
    key: int
    state: str | None
    transaction: Transaction


@dataclass(frozen=True)
class Record:
    """A record as from Kafka; the end of a partition if it has no event."""

    place: Place
    at: int
    content: bytes | None = None
    event: Event | None = None

    def error(self) -> KafkaError | None:
        return None if self.event else KafkaError(KafkaError._PARTITION_EOF)

    def topic(self) -> str:
        return self.place.topic

    def partition(self) -> int:
        return self.place.partition

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes | None:
        return self.content


class ModelMigration(Migration):
    """Changes rows that are `wanted`, guarded by that."""

    name = "model"
    gitlab_schema = "gitlab_main"
    tables = ("public.t",)
    columns = ("id", "n", "state")

    def decide(self, event: ChangeEvent) -> Decision:
        row = event.after
        if row is None or row["state"] != "wanted":
            return Skip("not wanted")
        return Change(row["id"], {"event": row["n"]})

    def apply(self, cursor: Any, changes: Sequence[Change]) -> int:
        return sum(cursor.apply(change) for change in changes)

    def remaining(self, cursor: Any) -> int:
        raise NotImplementedError


MIGRATION: Final = ModelMigration(Options())


class Topic:
    """The records of each partition of one topic by offset, including transaction markers."""

    def __init__(self, number: int) -> None:
        self.id = str(number)
        self.records: dict[Place, dict[int, Record]] = {place: {} for place in PLACES}
        self.ends = dict.fromkeys(PLACES, 0)

    def append(self, event: Event, content: bytes) -> None:
        place = PLACES[event.key % len(PLACES)]
        self.records[place][self.ends[place]] = Record(place, self.ends[place], content, event)
        self.ends[place] += 1

    def mark(self) -> None:
        for place in PLACES:
            self.ends[place] += 1


def encode(event: Event, database: str, lsn: int, *, read: bool) -> bytes:
    """Return the value of an event's record, as the producer of `database` streams it, or as a snapshot reads it."""
    if event.state == "nonsense":
        return b"nonsense"
    encoder = _ENCODERS[database]
    xid = None if read else event.transaction.xid % _WRAP
    prefix = encoder.event_prefix(Op.READ if read else Op.CREATE, lsn=Lsn(lsn), xid=xid, ts_ms=1)
    row: Any = [b"%d" % event.key, b"%d" % event.number, (event.state or "deleted").encode()]
    return encoder.change(prefix, event.number, 1, row)[1]
