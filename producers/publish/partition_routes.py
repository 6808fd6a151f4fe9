"""Routes the changes of a relation to a table's feed, under that table's name and in its column order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

from producers.publish.table_publisher import TableFeed
from producers.source.partitions import as_its_table, identity_obstacle
from producers.source.schema_changes import TableStopped
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


def route_of(relation: Relation, named: Relation, feed: TableFeed, text: ServerText | None = None) -> Route:
    """Return the route of a table or partition; raises TableStopped and IncompatibleSchema.

    `named` is the relation with its names in UTF-8; `text` converts values that are not.
    """
    table = feed.table.relation
    captured_places = feed.encoders.captured_places(named)
    shown = named if captured_places is None else _of_columns(named, captured_places)
    if relation.oid != table.oid:
        if (reason := identity_obstacle(shown, feed.table.key)) is not None:
            raise TableStopped(reason)
        shown = as_its_table(shown, table)
    encoder = feed.stream_encoder_for(shown)
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


def _of_columns(relation: Relation, places: tuple[int, ...]) -> Relation:
    columns = tuple(relation.columns[place] for place in places)
    names = {column.name for column in columns}
    identity = tuple(name for name in relation.identity_columns if name in names)
    return replace(relation, columns=columns, identity_columns=identity)
