"""Dates and times are encoded the same by either codec over PostgreSQL's whole range."""

from __future__ import annotations

import itertools
import re

import pytest

from schemas.codec import implementation
from schemas.codec.encoder import Encoder
from schemas.codec.row_encoder import encode_texts
from schemas.codec.values import NULL, VALUE, value_encoder
from schemas.column_types import column_type
from schemas.errors import Malformed
from schemas.events import Column, Op, Origin, Relation
from schemas.positions import Lsn

DATE, TIME, TIMESTAMP, TIMESTAMPTZ = 1082, 1083, 1114, 1184

_DATES = ("4714-11-24{} BC", "0001-12-31{} BC", "0001-01-01{}", "1969-12-31{}", "1970-01-01{}", "2024-02-29{}")
_FAR_DATES = ("3111-09-16{}", "9999-12-31{}", "10000-01-01{}", "99999-12-31{}", "100000-01-01{}", "294276-12-31{}")
_CLOCKS = ("00:00:00", "23:59:59", *(f"23:59:59.{'123456'[:digits]}" for digits in range(1, 7)))
_MOMENTS = tuple(itertools.product((*_DATES, *_FAR_DATES), _CLOCKS))

TEXTS: dict[int, tuple[str, ...]] = {
    DATE: (*(date.format("") for date in (*_DATES, *_FAR_DATES)), "5874897-12-31", "infinity", "-infinity"),
    TIME: (*_CLOCKS, "24:00:00"),
    TIMESTAMP: (*(date.format(f" {clock}") for date, clock in _MOMENTS), "infinity", "-infinity"),
    TIMESTAMPTZ: (*(date.format(f" {clock}+00") for date, clock in _MOMENTS), "infinity", "-infinity"),
}
"""PostgreSQL type → texts as a session in UTC writes them."""


@pytest.mark.parametrize("type_oid", TEXTS)
def test_every_date_and_time_has_an_encoding_of_its_own_or_is_kept_as_text(type_oid: int) -> None:
    encode = value_encoder(column_type(type_oid))
    cells = [encode(text.encode()) for text in TEXTS[type_oid]]
    apart = [text for text, cell in zip(TEXTS[type_oid], cells, strict=True) if cell == NULL]
    assert len(set(cells) - {NULL}) + len(apart) == len(cells)
    assert apart == [text for text in TEXTS[type_oid] if re.match(r"-?infinity|\d{5}|.* BC$|24:", text)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("type_oid", TEXTS)
def test_rows_at_the_ends_of_time_are_encoded_by_each_codec(type_oid: int, compiled: bool) -> None:
    if compiled and implementation.name == "Python":
        pytest.skip("no compiled codec")
    encoder, exact = encoder_of(type_oid, compiled=compiled), value_encoder(column_type(type_oid))
    prefix = encoder.event_prefix(Op.CREATE, lsn=Lsn(1), xid=1, ts_ms=0)
    for text in (each.encode() for each in TEXTS[type_oid]):
        cell = exact(text)
        end = cell + (NULL if cell != NULL else VALUE + encode_texts([]) + encode_texts([("at", text)]))
        _, value = encoder.change(prefix, 0, 0, (b"1", text))
        assert value.endswith(end)
        _, (copied,) = encoder.encode_copy_chunk(b"1\t" + text + b"\n", b"")
        assert copied.endswith(end)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_error_of_a_value_names_its_column_and_not_the_key(compiled: bool) -> None:
    encoder = encoder_of(TIMESTAMP, compiled=compiled)
    prefix = encoder.event_prefix(Op.CREATE, lsn=Lsn(1), xid=1, ts_ms=0)
    for text in (b"2024-02-30 00:00:00", b"2024-01-01 00:00:00+00", b"now"):
        with pytest.raises(Malformed, match=r"public\.t: a value of column at is "):
            encoder.change(prefix, 0, 0, (b"1", text))
    with pytest.raises(Malformed, match="a row without a value in its key id"):
        encoder.change(prefix, 0, 0, (None, b"2024-01-01 00:00:00"))


def encoder_of(type_oid: int, *, compiled: bool) -> Encoder:
    columns = Column("id", 23, -1), Column("at", type_oid, -1)
    relation = Relation(1, "public", "t", "d", columns, ("id",))
    return Encoder(
        relation,
        "gitlab_main",
        ("id",),
        origin=Origin("main", "main"),
        value_schema_id=1,
        key_schema_id=2,
        compiled=compiled,
    )
