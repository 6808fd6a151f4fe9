"""Encoders of one table's rows, one per version of its columns, with their registered schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
)
from producers.source.tables import CapturedTable
from schemas.avro import key_schema, value_schema
from schemas.encoder import Encoder
from schemas.events import Relation


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
    ) -> None:
        """`now` queries the catalog; None if that is not known."""
        self._source = source
        self._table = table
        self._registry = registry
        self._made: dict[tuple[object, ...], tuple[Encoder, Followed]] = {}
        self._followed: Followed = {each.name: FollowedColumn(each.number, each.type_oid) for each in recorded}
        self._now = now
        self.columns: tuple[ColumnState, ...] | None = None
        """The columns to record, None until an encoder was created; a new tuple after each change."""

    @property
    def captured(self) -> frozenset[str]:
        """The columns of the topic's last records."""
        return frozenset(self._followed)

    def encoder(self, relation: Relation) -> Encoder:
        """Return the encoder for rows of these columns; registers their schemas the first time.

        Raises IncompatibleSchema if readers of the topic could not read both versions, and TableStopped if records in
        the topic would become wrong; see producers.source.schema_changes.
        """
        identity = _identity(relation)
        if identity not in self._made:
            table = self._table
            followed = self._follow(relation)
            key_id, value_id = (self._registry.register(*each) for each in schemas_of(table, relation))
            encoder = Encoder(
                relation,
                table.gitlab_schema,
                table.key,
                database=self._source,
                key_schema_id=key_id,
                value_schema_id=value_id,
            )
            self._made[identity] = encoder, followed
            self._note(followed)
        return self._made[identity][0]

    def stream_encoder(self, relation: Relation) -> Encoder:
        """Return the encoder for rows that the stream describes so from here on; as `encoder`.

        Where the stream is back at an earlier version, columns are forgotten that came and went in between and whose
        number is not known: a column added later cannot be one of these renamed, or this version would have it.
        """
        if (made := self._made.get(_identity(relation))) is None:
            return self.encoder(relation)
        encoder, followed = made
        others = {name: each for name, each in self._followed.items() if each.number}
        if self._followed.keys() - followed.keys() - others.keys():
            self._note({**others, **followed})
        return encoder

    def captured_places(self, relation: Relation) -> tuple[int, ...] | None:
        """Return the indexes of the stream's columns that are captured; None if all are.

        From PostgreSQL 18 on the stream has stored generated columns, chunks never do: both omit them.
        """
        now = self._now()
        generated = now.generated if now is not None else frozenset()
        places = tuple(place for place, column in enumerate(relation.columns) if column.name not in generated)
        return None if len(places) == len(relation.columns) else places

    def _note(self, followed: Followed) -> None:
        self._followed = followed
        self.columns = tuple(
            ColumnState(name=name, number=each.number, type_oid=each.type_oid) for name, each in followed.items()
        )

    def _follow(self, relation: Relation) -> Followed:
        now = self._now()
        if (reason := obstacle(self._table, relation, self._followed, now)) is not None:
            raise TableStopped(reason)
        if filled := filled_columns(relation, self._followed, now):
            log.get(**{log.SOURCE: self._source, log.TABLE: self._table.name}).warning(
                "rows in the topic lack an added column", columns=filled
            )
        return follow(relation, self._followed, now)


def _identity(relation: Relation) -> tuple[object, ...]:
    return relation.qualified_name, relation.columns, relation.replica_identity, relation.identity_columns
