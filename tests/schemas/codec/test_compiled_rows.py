"""The compiled codec against the Python one, on rows and lines that are broken in any way: the same bytes or error."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.stream.pgoutput_fields import columns_in_python
from schemas.codec import implementation
from schemas.codec.encoder import Encoder
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Column, Op, Relation
from schemas.positions import Lsn
from tests.schemas.codec.rows import Sample, copy_line, encoder_of, samples

pytestmark = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")

ODDITIES = [
    *(b"", b"-"),
    *(b"+1", b"1_0", b" 1", b"1 ", b"\\N", b"\\", b"a\\Nb", b"\\x41", b"\\b\\f\\n\\r\\t\\v\\\\", b"\0", b"\xff"),
    *(b"007", b"-0", b"9" * 19, b"-9223372036854775808", b"-9223372036854775809", b"1" * 40, b"2147483648", b"32768"),
    *(b"4294967296", b"1e5", b"1.", b".5", b"1.5e", b"1e+", b"1e-400", b"1e400", b"3.5e38", b"-nan", b"inf", b"+1.0"),
    *(b"Infinity", b"-Infinity", b"NaN", b"-NaN", b"0x1p3", b"1" * 70 + b".5", b"-0", b"-0.0", b"5e-324", b"-128"),
    *(b"0000-01-01", b"0000-01-01 BC", b"2023-02-29", b"2024-02-29", b"1900-02-29", b"2000-02-29", b"2024-04-31 BC"),
    *(b"99999999-01-01", b"10000-02-31", b"2024-1-01", b"2024-01-01BC", b"infinity ", b"24:00:00", b"24:00:00.0"),
    *(b"23:59:60", b"12:00:00.1234567", b"12:00:00.", b"12:00", b"2024-01-01", b"2024-01-01 ", b"2024-01-01  00:00:00"),
    *(b"2024-01-01 00:00:00", b"2024-01-01 00:00:00+00", b"2024-01-01 00:00:00+00:00", b"2024-01-01 00:00:00.5+00"),
    *(b"2024-01-01 00:00:00+01", b"10000-01-01 00:00:00+00 BC", b"0001-01-01 00:00:00.000001+00 BC"),
    *(b"-1.28", b"-2.56", b"1.27", b"-0.00", b"0.10", b"00000000000.10", b"99999999.99", b"100000000.00"),
]  # fmt: skip


def both(sample: Sample) -> tuple[Encoder, Encoder]:
    return encoder_of(sample, compiled=False), encoder_of(sample, compiled=True)


def outcome(call: Callable[..., Any], *arguments: Any) -> object:
    try:
        return call(*arguments)
    except Malformed as error:
        return str(error)


@st.composite
def broken_samples(draw: st.DrawFn) -> Sample:
    sample = draw(samples(unchanged=True, rows=3))
    for row in sample.texts:
        for index in draw(st.sets(st.integers(0, len(row) - 1), max_size=3)):
            text = row[index] if isinstance(row[index], bytes) else b""
            at = draw(st.integers(0, len(text)))
            mutations = [text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 2)) :], text[:at]]
            row[index] = draw(st.sampled_from([*mutations, draw(st.sampled_from(ODDITIES)), None, UNCHANGED]))
    return sample


@given(broken_samples())
@settings(deadline=None)
def test_rows_of_the_stream_are_the_same(sample: Sample) -> None:
    python, compiled = both(sample)
    prefix = python.event_prefix(Op.UPDATE, lsn=Lsn(1 << 40), xid=5, ts_ms=6)
    old, new = sample.texts[0], sample.texts[-1]
    for name, arguments in (
        ("key", (new,)),
        ("change", (prefix, 3, -4, new)),
        ("update", (prefix, 1 << 40, 4, old, new)),
        ("delete", (prefix, 0, 1 << 70, tuple(old))),
        ("delete", (prefix, 0, 0, old)),
    ):
        assert outcome(getattr(compiled, name), *arguments) == outcome(getattr(python, name), *arguments), name


def raw_line(row: Sequence[Any], *, escaped: bool) -> bytes:
    texts = [None if text is UNCHANGED else text for text in row]
    return copy_line(texts) if escaped else b"\t".join(b"\\N" if text is None else text for text in texts) + b"\n"


@given(broken_samples(), st.booleans(), st.integers(0, 3))
@settings(deadline=None)
def test_lines_are_the_same(sample: Sample, escaped: bool, cut: int) -> None:
    python, compiled = both(sample)
    data = b"".join(raw_line(row, escaped=escaped) for row in sample.texts)
    data = data[: len(data) - cut]
    assert outcome(compiled.encode_copy_chunk, data, b"p") == outcome(python.encode_copy_chunk, data, b"p")


@pytest.mark.parametrize("text", ODDITIES, ids=repr)
def test_odd_texts_are_the_same_in_a_column_of_any_type(text: bytes) -> None:
    kinds = [
        *((oid, -1) for oid in (16, 21, 23, 20, 26, 700, 701, 25, 2950, 1082, 1083, 1114, 1184)),
        *((1700, (precision << 16 | scale) + 4) for precision, scale in ((10, 2), (3, 0), (1000, 0), (1000, 1000))),
    ]
    for kind in kinds:
        relation = Relation(1, "public", "t", "f", (Column("id", 20), Column("odd", *kind)), ())
        for key, value in (("id", text), ("odd", text)):
            python, compiled = both(Sample(relation, (key,), [], []))
            row = [b"1", value]
            assert outcome(compiled.change, b"", 0, 0, row) == outcome(python.change, b"", 0, 0, row), kind
            line = b"1\t" + value + b"\n"
            assert outcome(compiled.encode_copy_chunk, line, b"") == outcome(python.encode_copy_chunk, line, b""), kind


def test_long_decimals_are_the_same() -> None:
    columns = (Column("id", 20), Column("n", 1700, (1000 << 16) + 4))
    python, compiled = both(Sample(Relation(1, "public", "t", "f", columns, ()), ("id",), [], []))
    for digits in range(1, 1002):
        for text in (b"-" + b"9" * digits, b"1" + b"0" * (digits - 1), b"%d" % (1 << digits), b"%d" % -(1 << digits)):
            row = [b"1", text]
            assert outcome(compiled.change, b"", 0, 0, row) == outcome(python.change, b"", 0, 0, row)


def test_more_than_a_block_of_lines() -> None:
    columns = (Column("id", 20), Column("t", 25), Column("f", 701))
    for relation in (Relation(1, "public", "t", "f", columns[:2], ()), Relation(1, "public", "t", "f", columns, ())):
        python, compiled = both(Sample(relation, ("id", "t"), [], []))
        row = [b"1", b"x\\" * 2000, b"1.5"][: len(relation.columns)]
        data = copy_line(row) * 600
        assert compiled.encode_copy_chunk(data, b"prefix") == python.encode_copy_chunk(data, b"prefix")
        broken = data + b"one" + data[1:]
        assert outcome(compiled.encode_copy_chunk, broken, b"") == outcome(python.encode_copy_chunk, broken, b"")


@pytest.mark.parametrize(
    "special", [b"", rb"\n", rb"\t", rb"\\", rb"\x", rb"\N", b"\\", b"\t", b"\n", "\u010a\u0109\u015c".encode()]
)
def test_texts_are_the_same_wherever_their_special_bytes_are(special: bytes) -> None:
    """Longer fields are read eight bytes at a time, from their seventeenth byte on."""
    columns = (Column("id", 20), Column("t", 25), Column("u", 25))
    python, compiled = both(Sample(Relation(1, "public", "t", "f", columns, ()), ("id",), [], []))
    for before in range(36):
        for after in (*range(10), 30):
            text = b"a" * before + special + b"]" * after
            line = b"1\t" + text + b"\tlast\n"
            ended = outcome(python.encode_copy_chunk, line, b"p")
            assert outcome(compiled.encode_copy_chunk, line, b"p") == ended, line
            for cut in (line[:-1], b"1\t" + text):
                assert outcome(compiled.encode_copy_chunk, cut, b"p") == outcome(python.encode_copy_chunk, cut, b"p")


@pytest.mark.long
def test_rows_that_are_a_block_of_their_own() -> None:
    columns = (Column("id", 20), Column("t", 25))
    python, compiled = both(Sample(Relation(1, "public", "t", "f", columns, ()), ("id",), [], []))
    texts = ((b"x" * 4000 + b"\n\\") * 1500, b"small", b"y" * (9 << 20), b"z" * (4 << 20))
    data = b"".join(copy_line([b"%d" % number, text]) for number, text in enumerate(texts))
    assert compiled.encode_copy_chunk(data, b"prefix") == python.encode_copy_chunk(data, b"prefix")


VALUES = st.lists(st.one_of(st.none(), st.just(UNCHANGED), st.binary(max_size=40)), max_size=8)


def wire(values: Sequence[Any]) -> bytes:
    parts = [b"n" if v is None else b"u" if v is UNCHANGED else b"t" + struct.pack("!I", len(v)) + v for v in values]
    return b"".join(parts)


@given(VALUES, st.binary(max_size=3), st.binary(max_size=3))
def test_a_row_is_the_sequence_of_its_values(values: list[Any], before: bytes, behind: bytes) -> None:
    data = before + wire(values) + behind
    row, end = implementation.compiled.tuple_row(data, len(before), len(values))
    assert (row, end) == columns_in_python(data, len(before), len(values))
    assert end == len(data) - len(behind)
    assert len(row) == len(values)
    assert list(row) == [row[index] for index in range(len(values))] == values
    assert row == values
    assert row != [*values, None]
    assert row == implementation.compiled.tuple_row(wire(values), 0, len(values))[0]
    assert repr(row) == repr(values)
    with pytest.raises(IndexError):
        row[len(values)]


@given(VALUES, st.data())
def test_a_broken_tuple_is_left_to_python(values: list[Any], data: st.DataObject) -> None:
    whole = wire(values)
    at = data.draw(st.integers(0, len(whole)))
    broken = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    found = implementation.compiled.tuple_row(broken, 0, len(values))
    if found is not None:
        assert found == columns_in_python(broken, 0, len(values))


@pytest.mark.parametrize("arguments", [(), (b"", 0), ("", 0, 0), (b"", "0", 0), (b"", 0, None), (b"", 1 << 70, 0)])
def test_row_with_invalid_arguments_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        implementation.compiled.tuple_row(*arguments)


@pytest.mark.parametrize("arguments", [(b"", -1, 0), (b"", 0, -1), (b"n", 1, 1), (b"n", 5, 1), (b"b\0\0\0\0", 0, 1)])
def test_missing_tuple_is_left_to_python(arguments: tuple[Any, ...]) -> None:
    assert implementation.compiled.tuple_row(*arguments) is None


def test_an_encoder_is_forgotten_with_its_plan() -> None:
    relation = Relation(1, "public", "t", "f", (Column("id", 20),), ())
    _, compiled = both(Sample(relation, ("id",), [], []))
    gone = weakref.ref(compiled)
    del compiled
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ((), (), b"", b"", (), (len,) * 5),
        (((0,) * 8,), (1,), b"", b"", (b"",), (len,) * 5),
        (((99, *(0,) * 7),), (0,), b"", b"", (b"",), (len,) * 5),
        (((0,) * 7,), (0,), b"", b"", (b"",), (len,) * 5),
        ((0,), (0,), b"", b"", (b"",), (len,) * 5),
        (((0,) * 8,), (0,), b"", b"", ("",), (len,) * 5),
        (((0,) * 8,), (0,), b"", b"", (), (len,) * 5),
        (((0,) * 8,), (0,), b"", b"", (b"",), (len,) * 4),
        (((0,) * 8,), ("0",), b"", b"", (b"",), (len,) * 5),
    ],
)
def test_plan_with_invalid_arguments_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        implementation.compiled.Plan(*arguments)
