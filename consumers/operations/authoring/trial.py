"""Shows what a migration does with the latest event of one row: its decision, and the SQL, which is rolled back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from psycopg.abc import Query

from consumers.contract import contract_checks
from consumers.contract.decisions import Change
from consumers.contract.migration import Migration
from consumers.delivery.topics import Schemas, schemas_of, source_topics
from consumers.ledger.progress import Place, member_name
from consumers.operations.start_offsets import first_record
from consumers.planning.key_selection import Selection, named, parse_selection
from consumers.planning.key_values import KeyKind, key_kinds
from consumers.planning.planner import Planner
from infra.kafka import clients, topics
from infra.postgres import connect
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.codec.header import HeaderReader
from schemas.errors import BrokerUnavailable, Malformed, UsageError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Offset
from schemas.wire import HEADER_BYTES, split_wire

_TIMEOUT: Final = 30.0
_AT_ONCE: Final = 10_000
_WINDOW: Final = 5_000
"""How many offsets before the end of each partition are read first; each time the row is not there, four times more."""
_LOCK_MS: Final = 2_000
_DELETES: Final = frozenset(b"dt")


class NoEvent(UsageError):
    """Check the key; a row that the producer has not read yet has no event."""


@dataclass(frozen=True)
class Trial:
    """The outcome. `operation` is the event's, such as `u`, None for a tombstone or an unreadable event.

    `decision` is change, skip or dead letter. `statements` were executed and rolled back; `changed` is what `apply`
    returned for the change, None if there was none.
    """

    migration: str
    database: str
    table: str
    key: Mapping[str, str]
    topic: str
    partition: int
    offset: int
    operation: str | None
    decision: str
    reason: str | None
    statements: tuple[str, ...] = ()
    changed: int | None = None


def attempt(
    settings: Settings, migration: Migration, database: str, keys: Sequence[str], table: str | None = None
) -> Trial:
    """Decide on the latest event of the row with `keys`, and execute what that leads to in a rolled-back transaction.

    `keys` is the key's value, or COLUMN=VALUE for each of several columns. Raises UsageError for a key of another form
    and for a table that the migration does not read, NoEvent, and what `decide` and `apply` raise.
    """
    table = _chosen(migration, table)
    topic = dict(zip(migration.tables, source_topics(settings, migration, database), strict=True))[table]
    schemas = schemas_of(open_registry(settings))
    key = _normalized(topic, keys, _kinds(settings, topic, schemas))
    record = _latest(settings, topic, Selection(key, schemas))
    shown = {column: values[0] for column, values in key.items()}
    if record is None:
        said = ", ".join(f"{column}={value}" for column, value in shown.items())
        raise NoEvent(f"topic {topic} has no event of the row {said}")
    place, offset = Place(topic, int(record.partition() or 0)), Offset(int(record.offset() or 0))
    planner = Planner(migration, schemas, database)
    (sub_batch,) = planner.plan([record], {place: offset}, limit=2)
    decision, reason = "change", None
    if sub_batch.dead_letters:
        decision, reason = "dead letter", sub_batch.dead_letters[0].reason
    elif not sub_batch.changes:
        decision, reason = "skip", next(iter(sub_batch.advances[0].skipped))
    statements, changed = (
        _rolled_back(settings, migration, database, sub_batch.changes) if sub_batch.changes else ((), None)
    )
    return Trial(
        migration.name, database, table, shown, topic, place.partition, offset,
        _operation(record), decision, reason, statements, changed,
    )  # fmt: skip


def _chosen(migration: Migration, table: str | None) -> str:
    if table is None and len(migration.tables) == 1:
        return migration.tables[0]
    if table not in migration.tables:
        problem = f"{migration.name} does not read {table}" if table else f"{migration.name} reads several tables"
        raise UsageError(problem, remedy=f"choose one with --table: {', '.join(migration.tables)}")
    return table


def _kinds(settings: Settings, topic: str, schemas: Schemas) -> dict[str, KeyKind]:
    found = first_record(settings.kafka, topic)
    if found is None:
        raise NoEvent(f"topic {topic} has no events", remedy="start its producer first")
    key, value = found
    return key_kinds(schemas(split_wire(key)[0]), None if value is None else schemas(split_wire(value)[0]))


def _normalized(topic: str, keys: Sequence[str], kinds: Mapping[str, KeyKind]) -> dict[str, list[str]]:
    several = len(kinds) > 1
    form = " ".join(f"--key {column}=…" for column in kinds) if several else "--key VALUE"
    if several and any("=" not in each for each in keys):
        raise UsageError(f"the key of {topic} has {len(kinds)} columns", remedy=f"write {form}")
    try:
        found = named(parse_selection(keys, []) if several else parse_selection([], keys), kinds)
    except UsageError as error:
        # Its remedy is about options of another command.
        raise UsageError(error.problem.replace("--keys ", "--key "), remedy=f"write {form}") from None
    if found.keys() != kinds.keys() or any(len(values) != 1 for values in found.values()):
        remedy = f"write {form}; double-quote a value with a comma"
        raise UsageError(f"--key is not the key of one row of {topic}", remedy=remedy)
    return found


def _latest(settings: Settings, topic: str, selection: Selection) -> Message | None:
    """Return the last record of the row, reading from the ends of the partitions towards their beginnings."""
    ends = {partition: end for partition, end in topics.end_offsets(settings.kafka, topic).items() if end > 0}
    window = _WINDOW
    with clients.reading(settings.kafka, client_id=member_name(), enable_partition_eof=True) as client:
        while ends:
            starts = {partition: max(0, end - window) for partition, end in ends.items()}
            if (found := _last(client, topic, starts, ends, selection)) is not None:
                return found
            ends = {partition: start for partition, start in starts.items() if start > 0}
            window *= 4
    return None


def _last(
    client: Consumer, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], selection: Selection
) -> Message | None:
    """Return the last record of the row from `starts` to `ends`; a delete rather than the tombstone after it."""
    clients.assign(
        client, [TopicPartition(topic, partition, at or OFFSET_BEGINNING) for partition, at in starts.items()]
    )
    left, found = dict(ends), None
    while left:
        first = client.poll(_TIMEOUT)
        if first is None:
            raise BrokerUnavailable(f"Kafka stopped answering while {topic} was read")
        for record in [first, *client.consume(_AT_ONCE, timeout=0)]:
            error, partition, offset = record.error(), int(record.partition() or 0), int(record.offset() or 0)
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if partition not in left:
                continue
            wanted = error is None and offset < left[partition] and _is_of(record, selection)
            if wanted and not (record.value() is None and found is not None and _is_delete(found)):
                found = record
            if offset + (error is None) >= left[partition]:
                del left[partition]
    return found


def _is_of(record: Message, selection: Selection) -> bool:
    # A selection has what it cannot read, so that nothing is lost; here that is no row.
    key = record.key()
    try:
        return isinstance(key, bytes) and len(key) > HEADER_BYTES and selection.has(key)
    except UsageError:
        return False


def _is_delete(record: Message) -> bool:
    value = record.value()
    return value is not None and value[HEADER_BYTES + 1] in _DELETES


def _operation(record: Message) -> str | None:
    value = record.value()
    try:
        return HeaderReader().prefix(bytes(value)).op.value if value is not None else None
    except Malformed:
        return None


def _rolled_back(
    settings: Settings, migration: Migration, database: str, changes: Sequence[Change]
) -> tuple[tuple[str, ...], int]:
    """Return the statements of `apply` with their values, and how many rows it would change."""
    executed: list[str] = []

    class Recording(psycopg.Cursor[Any]):
        """Keeps the text of what it executes."""

        def execute(self, query: Query, params: Any = None, **options: Any) -> Recording:
            executed.append(_text(self, query, params))
            super().execute(query, params, **options)  # type: ignore[arg-type]
            return self

        def executemany(self, query: Query, params_seq: Any, **options: Any) -> None:
            rows = list(params_seq)
            executed.extend(_text(self, query, params) for params in rows)
            super().executemany(query, rows, **options)

    section = settings.database(database)
    with connect.session(section, name=f"try {migration.name}") as connection:
        connect.search(connection, section.search_path)
        contract_checks.validate(migration, connection)
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", (str(_LOCK_MS),))
            connection.cursor_factory = Recording
            try:
                changed = contract_checks.apply(migration, cursor, changes)
            except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege):
                raise
            except psycopg.Error as error:
                problem = f"the SQL of {migration.name} failed for this row: {connect.one_line(error)}"
                raise UsageError(problem, remedy="correct it, or the row; nothing was written") from error
            connection.cursor_factory = psycopg.Cursor
    return tuple(executed), changed


def _text(cursor: psycopg.Cursor[Any], query: Query, params: Any) -> str:
    """Return the statement with its values, as the client would send it."""
    return psycopg.ClientCursor(cursor.connection).mogrify(query, params)
