"""Tables and rows for the codec's tests: PostgreSQL's texts beside the Python values that they stand for.

The values are made here, from Python to text, so that nothing of the code under test decides what is right.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from typing import Any

from hypothesis import strategies as st

from schemas.codec.encoder import Encoder
from schemas.events import UNCHANGED, Column, Origin, Relation

Pair = tuple[bytes, Any]
"""A value's text and what a reader should see."""


def _float_text(value: float) -> str:
    names = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}
    return names.get(repr(value), repr(value))


def _one_nan(value: float) -> float:
    # PostgreSQL's text has a single NaN, where Hypothesis knows many.
    return math.nan if math.isnan(value) else value


def _single(value: float) -> Pair:
    # PostgreSQL prints the shortest text that reads back to the same single.
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        # A text that rounds to more than the greatest single cannot be packed at all.
        if abs(float(text)) < 3.4028235677973366e38 and struct.pack("<f", float(text)) == struct.pack("<f", value):
            return _float_text(float(text)).encode(), value
    return _float_text(value).encode(), value


def _timestamp(value: datetime, zone: str) -> Pair:
    text = value.strftime("%H:%M:%S") + (f".{value.microsecond:06}".rstrip("0") if value.microsecond else "")
    return f"{value.date().isoformat()} {text}{zone}".encode(), value


def _time(value: time) -> Pair:
    return value.isoformat().encode(), value


def _decimal(unscaled: int, scale: int) -> Pair:
    value = Decimal(unscaled).scaleb(-scale, Context(prec=60))
    return f"{value:f}".encode(), value


def _texts(*texts: str) -> st.SearchStrategy[Pair]:
    return st.sampled_from([(text.encode(), text) for text in texts])


def _whole(bits: int) -> st.SearchStrategy[Pair]:
    limit = 1 << (bits - 1)
    numbers = st.one_of(st.integers(-limit, limit - 1), st.integers(0, min(limit - 1, 100_000)))
    return numbers.map(lambda number: (b"%d" % number, number))


_TEXT = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.text("ab\\\t\n\r\b\f\vN.é", max_size=8),
    st.text("x", min_size=60, max_size=70),
    st.just("y" * 300),
).map(lambda text: (text.encode(), text))
_DATETIMES = st.one_of(
    st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)),
    st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2020, 1, 2)),
    st.sampled_from([datetime(1970, 1, 1) + timedelta(microseconds=n) for n in (-1, 0, 1, 1 << 27, 1 << 41)]),
)
_FAR = (
    "infinity",
    "-infinity",
    "10000-01-01 10:00:00.12345{}",
    "294276-12-31 23:59:59.999999{}",
    "294276-12-31 23:59:59{}",
    "0044-03-15 10:00:00.123{} BC",
    "4714-11-24 00:00:00{} BC",
    "0001-01-01 00:00:00.1234{} BC",
)

VALUES: dict[tuple[int, int], st.SearchStrategy[Pair]] = {
    (16, -1): st.sampled_from([(b"t", True), (b"f", False)]),
    (21, -1): _whole(16),
    (23, -1): _whole(32),
    (20, -1): _whole(64),
    (26, -1): st.integers(0, (1 << 32) - 1).map(lambda number: (b"%d" % number, number)),
    (700, -1): st.floats(width=32).map(_one_nan).map(_single),
    (701, -1): st.floats().map(_one_nan).map(lambda value: (_float_text(value).encode(), value)),
    (25, -1): _TEXT,
    (1043, 24): _TEXT,
    (600_001, -1): _TEXT,
    (2950, -1): st.uuids().map(lambda value: (str(value).encode(), value)),
    (1082, -1): st.one_of(
        st.dates().map(lambda value: (value.isoformat().encode(), value)),
        _texts("infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "5874897-12-31"),
    ),
    (1083, -1): st.one_of(st.times().map(_time), _texts("24:00:00")),
    (1114, -1): st.one_of(
        _DATETIMES.map(lambda value: _timestamp(value, "")), _texts(*(text.format("") for text in _FAR))
    ),
    (1184, -1): st.one_of(
        _DATETIMES.map(lambda value: _timestamp(value.replace(tzinfo=UTC), "+00")),
        _texts(*(text.format("+00") for text in _FAR)),
    ),
    (1700, -1): _texts("1", "0.10", "NaN", "Infinity", "123456789012345678901234567890.5"),
    (1700, ((10 << 16) | 2) + 4): st.one_of(
        st.integers(-(10**10) + 1, 10**10 - 1).map(lambda number: _decimal(number, 2)), _texts("NaN")
    ),
    (1700, ((3 << 16) | 3) + 4): st.integers(-999, 999).map(lambda number: _decimal(number, 3)),
    (1700, ((40 << 16) | 0) + 4): st.integers(-(10**40) + 1, 10**40 - 1).map(lambda n: _decimal(n, 0)),
    (1700, ((5 << 16) | 0x7FE) + 4): _texts("12300", "-100"),
}
"""Type OID and modifier → its values."""

KEY_TYPES = [(23, -1), (20, -1), (25, -1), (2950, -1), (1184, -1), (1082, -1), (1700, ((10 << 16) | 2) + 4)]
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: "\0" not in name and name.isprintable())


@dataclass(frozen=True, slots=True)
class Sample:
    """A relation, its key, and rows as text and as values, side by side."""

    relation: Relation
    key: tuple[str, ...]
    texts: list[list[Any]]
    values: list[dict[str, Any]]


@st.composite
def samples(draw: st.DrawFn, *, unchanged: bool = False, rows: int = 5) -> Sample:
    """Draw a table of any columns, with one or two key columns among them."""
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=12))
    keys = draw(st.lists(st.sampled_from(KEY_TYPES), min_size=1, max_size=2))
    at = draw(st.integers(0, len(kinds)))
    kinds[at:at] = keys
    names = draw(st.lists(NAMES, min_size=len(kinds), max_size=len(kinds), unique=True))
    key_indexes = list(range(at, at + len(keys)))
    key = tuple(names[index] for index in draw(st.permutations(key_indexes)))
    full = draw(st.booleans())
    columns = tuple(Column(name, *kind) for name, kind in zip(names, kinds, strict=True))
    identity = () if full else tuple(names[index] for index in key_indexes)
    table = draw(st.sampled_from(["t", "Ünïcode table", "ci_builds"]))
    relation = Relation(1, "public", table, "f" if full else "d", columns, identity)
    texts, values = [], []
    toastable = {index for index, kind in enumerate(kinds) if kind[0] in (25, 1043, 600_001, 1700)}
    for _ in range(draw(st.integers(1, rows))):
        row: list[Any] = []
        told: dict[str, Any] = {}
        for index, kind in enumerate(kinds):
            is_key = index in key_indexes
            choices: list[st.SearchStrategy[Any]] = [VALUES[kind]]
            if not is_key:
                choices.append(st.just((None, None)))
                if unchanged and index in toastable:
                    choices.append(st.just((UNCHANGED, UNCHANGED)))
            text, value = draw(st.one_of(choices))
            row.append(text)
            told[names[index]] = value
        texts.append(row)
        values.append(told)
    return Sample(relation, key, texts, values)


def encoder_of(sample: Sample, compiled: bool) -> Encoder:
    """Return the encoder of a sample's rows, in Python or, where there is one, with the compiled codec."""
    return Encoder(
        sample.relation,
        "gitlab_main",
        sample.key,
        origin=Origin("main", "postgres"),
        value_schema_id=7,
        key_schema_id=8,
        compiled=compiled,
    )


ESCAPES = {
    b"\\": rb"\\", b"\b": rb"\b", b"\f": rb"\f", b"\n": rb"\n", b"\r": rb"\r", b"\t": rb"\t", b"\v": rb"\v",
}  # fmt: skip


def copy_line(row: list[Any]) -> bytes:
    """Return a row of texts as COPY writes it."""
    fields = []
    for text in row:
        field = rb"\N"
        if text is not None:
            field = b"".join(ESCAPES.get(bytes((byte,)), bytes((byte,))) for byte in text)
        fields.append(field)
    return b"\t".join(fields) + b"\n"


def is_apart(value: object, avro: Any) -> bool:
    """Whether a value is in an event's `exact`: a text whose column has another type."""
    return isinstance(value, str) and isinstance(avro, dict) and avro["logicalType"] != "uuid"


def same(left: object, right: object) -> bool:
    """Whether two values are the same, NaN and the sign of zero included."""
    return type(left) is type(right) and (left == right or repr(left) == repr(right))


def plain_key(value: Any, text: bytes) -> Any:
    """Return what a key column holds: partial types travel as text there."""
    return text.decode() if isinstance(value, date | datetime | time | Decimal) else value


__all__ = ["Sample", "copy_line", "encoder_of", "is_apart", "plain_key", "same", "samples"]
