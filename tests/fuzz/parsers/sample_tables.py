"""Tables for the fuzz targets of the codec: their relations, encoders in C and in Python, and well-formed rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from unittest.mock import patch

from schemas.codec import implementation
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.codec.encoder import Encoder
from schemas.codec.projection import Project, projection
from schemas.events import Column, Op, Origin, Relation
from schemas.positions import Lsn

Texts = tuple[bytes | None, ...]
"""A row as PostgreSQL's texts."""

_NUMERIC: Final = 1700


def _numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


@dataclass(frozen=True)
class SampleTable:
    """A relation with its key and a few well-formed rows."""

    relation: Relation
    key: tuple[str, ...]
    rows: tuple[Texts, ...]

    @property
    def width(self) -> int:
        return len(self.relation.columns)

    @cached_property
    def python(self) -> Encoder:
        return self._encoder(compiled=False)

    @cached_property
    def compiled(self) -> Encoder:
        return self._encoder(compiled=True)

    @cached_property
    def whole(self) -> Decoder:
        """fastavro's reader of the table's events."""
        return Decoder(self.python.value_schema)

    @cached_property
    def keys(self) -> KeyDecoder:
        return KeyDecoder(self.python.key_schema)

    @cached_property
    def projections(self) -> tuple[Project, Project]:
        """headrace's own readers of the events, in Python and in C where that was compiled."""
        names = [column.name for column in self.relation.columns]
        with patch.object(implementation, "compiled", None):
            python = projection(self.python.value_schema, names)
        return python, projection(self.python.value_schema, names)

    def prefix(self, op: Op) -> bytes:
        """The first bytes of an event of the table."""
        return self.python.event_prefix(op, lsn=Lsn(1 << 40), xid=700, ts_ms=1_700_000_000_000)

    def _encoder(self, *, compiled: bool) -> Encoder:
        return Encoder(
            self.relation,
            "gitlab_main",
            self.key,
            origin=Origin("main", "main"),
            value_schema_id=7,
            key_schema_id=8,
            compiled=compiled,
        )


def _table(name: str, identity: str, key: str, kinds: dict[str, tuple[int, int]], *rows: str) -> SampleTable:
    columns = tuple(Column(column, *kind) for column, kind in kinds.items())
    keys = tuple(key.split())
    relation = Relation(7, "public", name, identity, columns, () if identity == "f" else keys)
    texts = (tuple(None if text == "NULL" else text.encode() for text in row.split("|")) for row in rows)
    return SampleTable(relation, keys, tuple(texts))


TABLES: Final = (
    _table(
        "numbers",
        "d",
        "id",
        {
            "id": (20, -1),
            "small": (21, -1),
            "whole": (23, -1),
            "oid": (26, -1),
            "single": (700, -1),
            "double": (701, -1),
            "flag": (16, -1),
            "price": (_NUMERIC, _numeric(10, 2)),
            "fraction": (_NUMERIC, _numeric(3, 3)),
            "huge": (_NUMERIC, _numeric(1000, 0)),
            "any": (_NUMERIC, -1),
        },
        "9223372036854775807|-32768|2147483647|4294967295|0.1|1e+300|t|12345678.90|0.123|-1234567890123456789|1.50",
        "-1|0|NULL|0|NaN|-Infinity|f|NaN|-0.001|0|NULL",
        "42|7|8|9|-0|Infinity|NULL|-0.01|Infinity|99999999999999999999999999999999|NaN",
    ),
    _table(
        "times",
        "f",
        "at day",
        {
            "at": (1184, -1),
            "day": (1082, -1),
            "clock": (1083, -1),
            "local": (1114, -1),
            "uuid": (2950, -1),
        },
        "2026-01-31 12:00:00+00|2026-02-28|23:59:59.999999|1969-12-31 23:59:59.5|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "infinity|-infinity|24:00:00|0044-03-15 10:00:00.123 BC|NULL",
        "10000-01-01 10:00:00.12345+00|5874897-12-31|00:00:00|294276-12-31 23:59:59.999999|NULL",
    ),
    _table(
        "texts",
        "d",
        "name",
        {"name": (25, -1), "note": (25, -1), "mood": (600_001, -1), "Ünïcode column": (1043, 24)},
        "a|b|happy|short",
        f"{'x' * 63}|{'y' * 64}||é",
        f"n|NULL|NULL|{'long ' * 30}",
    ),
)


def chosen(data: bytes) -> tuple[SampleTable, bytes]:
    """Return the table selected by an input's first byte, and the rest of the input."""
    return TABLES[data[0] % len(TABLES)], data[1:]


Build = Callable[[int, SampleTable, Texts], bytes]


def seeds(build: Build) -> list[bytes]:
    """Return an input for each row of each table: its number in one byte, then the result of `build`."""
    return [bytes((number,)) + build(number, table, row) for number, table in enumerate(TABLES) for row in table.rows]


def is_text(values: Any) -> bool:
    """Whether all of a row's values are UTF-8, as PostgreSQL sends them."""
    try:
        for value in values:
            if isinstance(value, bytes):
                value.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_all(table: SampleTable, value: bytes) -> None:
    """Raise unless the table's three readers give the same event."""
    expected = repr(table.whole.decode(value))
    for read in table.projections:
        if (found := repr(read(value))) != expected:
            raise AssertionError(f"readers differ:\n  {expected}\n  {found}")
