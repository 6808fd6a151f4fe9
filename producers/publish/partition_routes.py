"""Routes the changes of a relation to a table's feed, under that table's name and in its column order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

from producers.publish.table_publisher import TableFeed
from producers.source.partitions import as_its_table, identity_obstacle
from producers.source.schema_changes import TableNow, TableStopped
from producers.source.server_text import ServerText
from producers.stream import messages as pg
from schemas.codec.encoder import Encoder
from schemas.errors import Malformed
from schemas.events import Relation


class Route(NamedTuple):
    """The destination of a relation's changes; `key` are the indexes of the key's columns in its rows.

    `row` converts a tuple of the stream into a row for the encoder; None, to save a call per change, if it already is.
    """

    relation: Relation
    feed: TableFeed
    encoder: Encoder
    key: tuple[int, ...]
    row: Callable[[pg.Values], pg.Values] | None

    @property
    def upserts(self) -> bool:
        """Whether updates are published as reads: of the old row at most some columns are known."""
        return self.feed.table.upserts and self.relation.replica_identity != "f"


def route_of(relation: Relation, named: Relation, feed: TableFeed, text: ServerText | None = None) -> Route:
    """Return the route of a table or partition; raises TableStopped and IncompatibleSchema.

    `named` is the relation with its names in UTF-8; `text` converts values that are not.
    """
    table = feed.table.relation
    # Asked once: what is left out and what is followed are then of the same moment.
    now = feed.encoders.now()
    shown = _without_generated(named, now)
    if relation.oid != table.oid:
        if (reason := identity_obstacle(shown, feed.table.key)) is not None:
            raise TableStopped(reason)
        shown = as_its_table(shown, table)
    encoder = feed.stream_encoder_for(shown, now)
    names = [column.name for column in named.columns]
    places = tuple(names.index(column.name) for column in shown.columns)
    captured = [column.name for column in shown.columns]
    key = tuple(captured.index(name) for name in feed.table.key)
    in_order = places == tuple(range(len(names)))
    if text is not None:
        return Route(relation, feed, encoder, key, partial(_converted, text, encoder.relation, key, places))
    return Route(relation, feed, encoder, key, None if in_order else partial(_in_order, places))


def _in_order(places: tuple[int, ...], values: pg.Values) -> pg.Values:
    return [values[place] for place in places]


def _converted(
    text: ServerText, relation: Relation, key: tuple[int, ...], places: tuple[int, ...], values: pg.Values
) -> pg.Values:
    return text.row(relation, _in_order(places, values), key)


def key_of(route: Route, values: pg.Values) -> tuple[bytes, ...]:
    """Return the texts of a row's key; raises Malformed if the stream lacks one, which no server does."""
    texts = tuple(values[place] for place in route.key)
    if not all(isinstance(text, bytes) for text in texts):
        raise Malformed(f"{route.relation.qualified_name}: a change lacks its key ({', '.join(route.feed.table.key)})")
    return cast("tuple[bytes, ...]", texts)


def _without_generated(relation: Relation, now: TableNow | None) -> Relation:
    """Return the relation with the captured columns.

    From PostgreSQL 18 on the stream has stored generated columns, chunks never do: both omit them.
    """
    if now is None or not now.generated:
        return relation
    columns = tuple(column for column in relation.columns if column.name not in now.generated)
    names = {column.name for column in columns}
    identity = tuple(name for name in relation.identity_columns if name in names)
    return replace(relation, columns=columns, identity_columns=identity)
