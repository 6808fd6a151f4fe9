"""Encoders of one table's rows, one per version of its columns, with their registered schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from infra.schema_registry.registry_identity import noted
from infra.schema_registry.topic_registry import AvroSchema, Registry
from infra.service import log
from infra.state.positions import ColumnState
from producers.source.schema_changes import (
    Followed,
    FollowedColumn,
    TableNow,
    TableStopped,
    filled_columns,
    follow,
    obstacle,
    renamed,
)
from producers.source.tables import CapturedTable
from schemas.avro import TRUNCATE_KEY, key_schema, value_schema
from schemas.codec.encoder import Encoder
from schemas.events import Origin, Relation
from schemas.wire import wire_header


def schemas_of(
    table: CapturedTable, relation: Relation | None = None
) -> tuple[tuple[str, AvroSchema], tuple[str, AvroSchema]]:
    """Return subject and schema of the table's keys and values, with the columns of `relation`."""
    described = relation or table.relation
    return (
        (f"{table.topic}-key", key_schema(described, table.gitlab_schema, table.key)),
        (f"{table.topic}-value", value_schema(described, table.gitlab_schema)),
    )


class TableEncoders:
    """Creates encoders and tracks the columns of the topic's last records."""

    def __init__(
        self,
        source: str,
        table: CapturedTable,
        registry: Registry,
        recorded: Iterable[ColumnState],
        now: Callable[[], TableNow | None],
        registered: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """`now` queries the catalog; None if that is not known. `registered` is SnapshotState's."""
        self._source = source
        self._table = table
        self._registry = registry
        self._made: dict[tuple[object, ...], Encoder] = {}
        self._truncate_key: bytes | None = None
        states = {each.name: (FollowedColumn(each.number, each.type_oid), each.gone) for each in recorded}
        self._followed: Followed = {name: column for name, (column, gone) in states.items() if not gone}
        self._gone: Followed = {name: column for name, (column, gone) in states.items() if gone}
        """Columns of earlier records that the table's last version lacks."""
        self._streamed: set[str] = set()
        """Columns that the stream has described in this session."""
        self.now = now
        self.columns: tuple[ColumnState, ...] | None = None
        """The columns to record, None until an encoder was created; a new tuple after each change."""
        self.registered = registered
        """The schema ids to record; a new mapping after each change."""

    @property
    def captured(self) -> frozenset[str]:
        """The columns of the topic's last records."""
        return frozenset(self._followed)

    def encoder(self, relation: Relation) -> Encoder:
        """Return the encoder for rows of these columns; registers their schemas the first time.

        Raises IncompatibleSchema if readers of the topic could not read both versions, TableStopped if records in the
        topic would become wrong (see producers.source.schema_changes), and RegistryChanged.
        """
        return self._made.get(_identity(relation)) or self._new(relation, self.now())

    def stream_encoder(self, relation: Relation, now: TableNow | None) -> Encoder:
        """Return the encoder for rows that the stream describes so from here on; as `encoder`.

        A version that was met before is judged again: the catalog's at the start may be one that the stream comes to
        later, and columns may have come and gone in between. `now` is the catalog's answer after this description.
        """
        encoder = self._made.get(_identity(relation))
        if encoder is None:
            encoder = self._new(relation, now)
        else:
            if (reason := renamed(relation, self._followed, now, self._gone)) is not None:
                raise TableStopped(reason)
            self._follow(relation, now)
        self._streamed.update(column.name for column in relation.columns)
        return encoder

    def truncate_key(self) -> bytes:
        """Return the key of a truncate; registers its schema the first time, since most topics never have one.

        Raises RegistryChanged.
        """
        if self._truncate_key is None:
            key_id = self._registry.register(f"{self._table.topic}-truncate-key", TRUNCATE_KEY)
            self.registered = noted(self.registered, {key_id: TRUNCATE_KEY}, f"table {self._table.name}")
            self._truncate_key = wire_header(key_id)
        return self._truncate_key

    def _new(self, relation: Relation, now: TableNow | None) -> Encoder:
        table = self._table
        if (reason := obstacle(table, relation, self._followed, now, self._gone)) is not None:
            raise TableStopped(reason)
        if filled := filled_columns(relation, self._followed, now):
            log.get(**{log.SOURCE: self._source, log.TABLE: table.name}).warning(
                "rows in the topic lack an added column", columns=filled
            )
        (key_subject, key), (value_subject, value) = schemas_of(table, relation)
        key_id = self._registry.register(key_subject, key)
        value_id = self._registry.register(value_subject, value)
        self.registered = noted(self.registered, {key_id: key, value_id: value}, f"table {table.name}")
        encoder = self._made[_identity(relation)] = Encoder(
            relation,
            table.gitlab_schema,
            table.key,
            origin=Origin(self._source, table.database),
            key_schema_id=key_id,
            value_schema_id=value_id,
        )
        self._follow(relation, now)
        return encoder

    def _follow(self, relation: Relation, now: TableNow | None) -> None:
        before = {**self._gone, **self._followed}
        self._followed = follow(relation, before, now)
        # The stream's next version shows whether a column without a known number was renamed. Only one that the stream
        # has not come to yet has to be remembered.
        self._gone = {
            name: each
            for name, each in before.items()
            if name not in self._followed and (each.number > 0 or name not in self._streamed)
        }
        columns = (*self._states(self._followed, gone=False), *self._states(self._gone, gone=True))
        if columns != self.columns:
            self.columns = columns

    @staticmethod
    def _states(columns: Followed, *, gone: bool) -> Iterator[ColumnState]:
        for name, each in columns.items():
            yield ColumnState(name=name, number=each.number, type_oid=each.type_oid, gone=gone)


def _identity(relation: Relation) -> tuple[object, ...]:
    return relation.qualified_name, relation.columns, relation.replica_identity, relation.identity_columns
