"""Typed key values are normalized to the key's text, or refused with the column."""

from __future__ import annotations

import pytest

from consumers.planning.key_values import KeyKind, key_kinds, text_of, typed
from schemas.avro import key_schema, value_schema
from schemas.codec.decoder import KeyDecoder
from schemas.codec.encoder import Encoder
from schemas.errors import UsageError
from schemas.events import Column, Origin, Relation
from schemas.positions import Lsn

UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
BIG, SMALL, BOOLEAN, FLOAT, DOUBLE, DATE, TIME, STAMP, STAMPTZ, NUMERIC, UUIDS, TEXT = (
    20, 21, 16, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950, 25
)  # fmt: skip
PRICE = (6 << 16 | 2) + 4

SAME = [
    (BIG, -1, "7", ["7", "07", " 7", "7 ", "+7", '"7"']),
    (SMALL, -1, "-5", ["-5", "-005"]),
    (BOOLEAN, -1, "t", ["t", "true", "True", "TRUE", "yes", "on", "1"]),
    (BOOLEAN, -1, "f", ["f", "false", "no", "0"]),
    (FLOAT, -1, "0.1", ["0.1", "1e-1", ".1", "0.10"]),
    (FLOAT, -1, "3.4028235e+38", ["3.4028235e38"]),
    (DOUBLE, -1, "10000000000", ["1e10", "10000000000", "1E+10", "10000000000.0"]),
    (DOUBLE, -1, "-0", ["0", "-0", "0.0"]),
    (DOUBLE, -1, "NaN", ["nan", "NaN"]),
    (DOUBLE, -1, "-Infinity", ["-Infinity", "-inf"]),
    (DATE, -1, "2026-01-31", ["2026-01-31", "20260131"]),
    (DATE, -1, "infinity", ["infinity"]),
    (DATE, -1, "0044-03-15 BC", ["0044-03-15 BC"]),
    (TIME, -1, "12:00:00.5", ["12:00:00.5", "12:00:00.500"]),
    (TIME, -1, "24:00:00", ["24:00:00", "24:00"]),
    (STAMP, -1, "2026-01-31 12:00:00", ["2026-01-31 12:00:00", "2026-01-31T12:00", "2026-01-31T12:00:00.000"]),
    (STAMP, -1, "12026-01-31 12:00:00", ["12026-01-31 12:00:00"]),
    (
        STAMPTZ,
        -1,
        "2026-01-31 12:00:00.25+00",
        ["2026-01-31 12:00:00.25+00", "2026-01-31T12:00:00.25Z", "2026-01-31T13:00:00.250+01:00"],
    ),
    (STAMPTZ, -1, "-infinity", ["-infinity"]),
    (NUMERIC, PRICE, "1.50", ["1.50", "1.5", "01.500", "1.5e0"]),
    (NUMERIC, PRICE, "0.00", ["0", "-0", "0.00"]),
    (NUMERIC, PRICE, "NaN", ["NaN"]),
    (NUMERIC, -1, "1.50", ["1.50"]),
    (UUIDS, -1, UUID, [UUID, UUID.upper(), "{" + UUID + "}", UUID.replace("-", "")]),
    (TEXT, -1, "a,b", ["a,b", '"a,b"']),
    (TEXT, -1, " x", ['" x"']),
    (TEXT, -1, "", ['""']),
    (TEXT, -1, 'say "x"', ['say "x"', '"say ""x"""']),
]  # fmt: skip


def relation(oid: int, modifier: int) -> Relation:
    return Relation(1, "public", "t", "d", (Column("the key", oid, modifier),), ("the key",))


def kind_of(oid: int, modifier: int) -> KeyKind:
    table = relation(oid, modifier)
    key, value = key_schema(table, "gitlab_main", ["the key"]), value_schema(table, "gitlab_main")
    return key_kinds(key, value)["the key"]


@pytest.mark.parametrize(("oid", "modifier", "stored", "tries"), SAME)
def test_typed_value_selects_the_encoded_key(oid: int, modifier: int, stored: str, tries: list[str]) -> None:
    table = relation(oid, modifier)
    encoder = Encoder(
        table, "gitlab_main", ["the key"], origin=Origin("main", "main"), value_schema_id=1, key_schema_id=2
    )
    prefix = encoder.copy_prefix(lsn=Lsn(0), ordinal=0, ts_ms=0)
    (key,), _ = encoder.encode_copy_chunk(stored.encode() + b"\n", prefix)
    decoded = text_of(KeyDecoder(encoder.key_schema).decode_key(key)["the key"])
    kind = kind_of(oid, modifier)
    assert [typed("the key", each, kind) for each in tries] == [decoded] * len(tries)


@pytest.mark.parametrize(
    ("oid", "modifier", "wrong", "says"),
    [
        (BIG, -1, "x", "is not an integer in the range of its type; for example --where the key=5,7"),
        (BIG, -1, "1.0", "an integer"),
        (BIG, -1, "", "an integer"),
        (SMALL, -1, "2147483648", "an integer"),
        (BOOLEAN, -1, "maybe", "a boolean; for example --where the key=true"),
        (DOUBLE, -1, "ten", "a number"),
        (FLOAT, -1, "1e300", "a number"),
        (DATE, -1, "2026-01-31 12:00:00", "a date; for example"),
        (DATE, -1, "2026-02-30", "a date"),
        (TIME, -1, "12:00:00+01", "a time of day"),
        (TIME, -1, "24:01:00", "a time of day"),
        (STAMP, -1, "2026-01-31T12:00:00Z", "a time without a zone"),
        (STAMP, -1, "2026-01-31T12:00:00.1234567", "a time without a zone"),
        (STAMPTZ, -1, "yesterday", "a time; for example --where the key=2026-01-31T12:00:00Z"),
        (STAMPTZ, -1, "2026-13-31 12:00:00+00", "a time"),
        (NUMERIC, PRICE, "1.505", "a decimal number"),
        (NUMERIC, PRICE, "10000.00", "a decimal number"),
        (UUIDS, -1, "a0eebc99", "a uuid; for example"),
        (TEXT, -1, " x", "an unquoted string; put it in double quotes"),
        (TEXT, -1, "", "an unquoted string"),
    ],
)
def test_invalid_value_is_refused_with_column_type_and_example(oid: int, modifier: int, wrong: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        typed("the key", wrong, kind_of(oid, modifier))
    assert "key column the key" in str(refused.value)
    assert says in str(refused.value)


def test_text_key_without_known_event_is_a_string() -> None:
    key = key_schema(relation(DATE, -1), "gitlab_main", ["the key"])
    assert key_kinds(key, None) == {"the key": KeyKind("string")}


@pytest.mark.parametrize("wrong", ["1e999999999999", "-1e999999", "1e-999999999999", "1E+99999999999999999999"])
def test_decimal_beyond_all_exponents_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="is not a decimal number"):
        typed("price", wrong, KeyKind("decimal", 10, 2))


def test_decimal_of_many_digits_is_not_rounded() -> None:
    digits = "1234567890123456789012345678901234567"
    assert typed("price", f"{digits}.25", KeyKind("decimal", 40, 2)) == f"{digits}.25"
    with pytest.raises(UsageError):
        typed("price", f"{digits}.255", KeyKind("decimal", 40, 2))
