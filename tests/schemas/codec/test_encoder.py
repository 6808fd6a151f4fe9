"""Both codecs, the plain Python and the compiled one, against fastavro byte for byte, for tables of every type."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import value_schema
from schemas.codec import implementation
from schemas.codec.encoder import Encoder
from schemas.errors import Malformed, UsageError
from schemas.events import UNCHANGED, Column, Op, Origin, Relation
from schemas.formats import PROGRAM
from schemas.positions import Lsn
from tests.schemas.codec.rows import Sample, copy_line, encoder_of, is_apart, plain_key, samples

LSN = Lsn(0x16_B374_D848)
SEEN, COMMITTED = 1_700_000_000_123, 1_700_000_000_000
needs_compiled = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
both_codecs = pytest.mark.parametrize(
    "compiled", [pytest.param(False, id="python"), pytest.param(True, id="compiled", marks=needs_compiled)]
)


def reference(schema: Any, schema_id: int, datum: dict[str, Any]) -> bytes:
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), datum)
    return b"\0" + schema_id.to_bytes(4, "big") + stream.getvalue()


def row_datum(schema: Any, values: list[Any]) -> dict[str, Any]:
    fields = schema["fields"][4]["type"][1]["fields"]
    return {field["name"]: cell(field["type"], value) for field, value in zip(fields, values, strict=True)}


def cell(union: list[Any], value: Any) -> Any:
    assert len(union) == 2
    return None if value is UNCHANGED or is_apart(value, union[1]) else value


def exact_texts(schema: Any, values: dict[str, Any]) -> dict[str, str]:
    """Return column → text of the values that a row's cells cannot represent."""
    types = [field["type"][1] for field in schema["fields"][4]["type"][1]["fields"]]
    return {name: value for (name, value), avro in zip(values.items(), types, strict=True) if is_apart(value, avro)}


def reference_key(encoder: Encoder, sample: Sample, index: int) -> bytes:
    names = [column.name for column in sample.relation.columns]
    values = [plain_key(sample.values[index][name], sample.texts[index][names.index(name)]) for name in sample.key]
    fields = encoder.key_schema["fields"]
    return reference(encoder.key_schema, 8, {field["name"]: value for field, value in zip(fields, values, strict=True)})


def reference_value(encoder: Encoder, op: str, ordinal: int, before: Any, after: Any, unchanged: list[str]) -> bytes:
    """Return a record as fastavro writes it; `before` and `after` are column → value, None without that row."""
    snapshot = op == "r"
    exact = {
        side: exact_texts(encoder.value_schema, row) if row is not None else {}
        for side, row in (("before", before), ("after", after))
    }
    before, after = (row and row_datum(encoder.value_schema, list(row.values())) for row in (before, after))
    return reference(
        encoder.value_schema,
        7,
        {
            "op": op,
            "source": {
                "version": PROGRAM,
                "connector": "postgresql",
                "name": "main",
                "db": "postgres",
                "gitlab_schema": "gitlab_main",
                "schema": encoder.relation.schema,
                "table": encoder.relation.table,
                "txId": None if snapshot else 4_000_000_000,
                "ts_ms": COMMITTED,
                "snapshot": "true" if snapshot else "false",
                "lsn": LSN,
                "ordinal": ordinal,
            },
            "ts_ms": COMMITTED if snapshot else SEEN,
            "unchanged": unchanged,
            "before": before,
            "after": after,
            "exact": exact if any(exact.values()) else None,
        },
    )


def prefix(encoder: Encoder, op: Op) -> bytes:
    return encoder.event_prefix(op, lsn=LSN, xid=4_000_000_000, ts_ms=COMMITTED)


def named(row: dict[str, Any]) -> list[str]:
    return [name for name, value in row.items() if value is UNCHANGED]


@both_codecs
@given(samples(unchanged=True), st.integers(0, 1 << 40))
@settings(deadline=None)
def test_changes_are_what_fastavro_writes(compiled: bool, sample: Sample, ordinal: int) -> None:
    encoder = encoder_of(sample, compiled)
    for index, (texts, row) in enumerate(zip(sample.texts, sample.values, strict=True)):
        key, value = encoder.change(prefix(encoder, Op.CREATE), ordinal, SEEN, texts)
        assert value == reference_value(encoder, "c", ordinal, None, row, named(row))
        assert key == encoder.key(texts) == reference_key(encoder, sample, index)


@both_codecs
@given(samples(unchanged=True))
@settings(deadline=None)
def test_old_rows_are_what_fastavro_writes(compiled: bool, sample: Sample) -> None:
    encoder = encoder_of(sample, compiled)
    covered = sample.relation.identity_columns
    full = sample.relation.replica_identity == "f"
    lacking = [] if full else [c.name for c in sample.relation.columns if c.name not in covered]
    new_texts, new = sample.texts[-1], sample.values[-1]
    old_texts, old = sample.texts[0], sample.values[0]
    before = {name: value if full or name in covered else None for name, value in old.items()}
    key, value = encoder.delete(prefix(encoder, Op.DELETE), 3, SEEN, old_texts)
    assert value == reference_value(encoder, "d", 3, before, None, lacking)
    assert key == reference_key(encoder, sample, 0)
    key, value = encoder.update(prefix(encoder, Op.UPDATE), 3, SEEN, old_texts, new_texts)
    assert value == reference_value(encoder, "u", 3, before, new, named(new))
    assert key == reference_key(encoder, sample, len(sample.texts) - 1)


@pytest.mark.long
@both_codecs
@given(samples(rows=20), st.sampled_from([1, 60]))
@settings(deadline=None)
def test_copied_rows_are_what_fastavro_writes(compiled: bool, sample: Sample, times: int) -> None:
    encoder = encoder_of(sample, compiled)
    data = b"".join(map(copy_line, sample.texts)) * times
    keys, values = encoder.encode_copy_chunk(data, encoder.copy_prefix(lsn=LSN, ordinal=9, ts_ms=COMMITTED))
    assert keys == [reference_key(encoder, sample, index) for index in range(len(sample.texts))] * times
    assert values == [reference_value(encoder, "r", 9, None, row, []) for row in sample.values] * times


@both_codecs
def test_copied_rows_are_those_of_the_stream(compiled: bool) -> None:
    columns = (Column("id", 20), *(Column(f"c{index}", 25) for index in range(6)), Column("at", 1184))
    relation = Relation(1, "public", "t", "d", columns, ("id",))
    states: list[list[Any]] = [[b"a", None, b"", b"b\tc", None, b"\\N"], [None, b"a", b"x" * 200, b"", b"z", None]]
    texts: list[list[Any]] = [
        [b"%d" % (index * 5), *states[index % 2], b"2024-02-29 23:59:59.%06d+00" % index] for index in range(3000)
    ]
    encoder = encoder_of(Sample(relation, ("id",), [], []), compiled)
    start = encoder.copy_prefix(lsn=LSN, ordinal=0, ts_ms=SEEN)
    keys, values = encoder.encode_copy_chunk(b"".join(map(copy_line, texts)), start)
    change = encoder.event_prefix(Op.READ, lsn=LSN, xid=None, ts_ms=SEEN, snapshot=True)
    assert list(zip(keys, values, strict=True)) == [encoder.change(change, 0, SEEN, row) for row in texts]


def test_a_truncate_has_no_rows() -> None:
    encoder = simple("int", 23)
    value = encoder.truncate(prefix(encoder, Op.TRUNCATE), 5, SEEN)
    assert value == reference_value(encoder, "t", 5, None, None, [])


def simple(name: str, oid: int, modifier: int = -1, *, compiled: bool = True) -> Encoder:
    columns = (Column("id", 20), Column(name, oid, modifier), Column("note", 25))
    relation = Relation(1, "public", "orders", "d", columns, ("id",))
    return encoder_of(Sample(relation, ("id",), [], []), compiled)


@both_codecs
@pytest.mark.parametrize(
    ("oid", "modifier", "text"),
    [
        (16, -1, b"true"),
        (23, -1, b"12a"),
        (23, -1, b"1_0"),
        (23, -1, b" 1"),
        (23, -1, b""),
        (23, -1, b"2147483648"),
        (21, -1, b"32768"),
        (20, -1, b"9223372036854775808"),
        (26, -1, b"-1"),
        (700, -1, b"1e99"),
        (701, -1, b"0x1"),
        (2950, -1, b"zz"),
        (1082, -1, b"2024-02-30"),
        (1082, -1, b"02/03/2024"),
        (1083, -1, b"25:00:00"),
        (1114, -1, b"2024-01-01 00:00:00+00"),
        (1184, -1, b"2024-01-01 00:00:00.000000+02"),
        (1184, -1, b"2024-01-01 00:00:61.000000+00"),
        (1184, -1, b"2024-13-01 00:00:00.000000+00"),
        (1184, -1, b"2024-01-01T00:00:00.000000+00"),
        (1700, ((4 << 16) | 2) + 4, b"123.45"),
        (1700, ((4 << 16) | 2) + 4, b"1.5"),
        (1700, ((4 << 16) | 2) + 4, b"one"),
    ],
)
def test_a_value_not_of_its_type_names_table_and_column(compiled: bool, oid: int, modifier: int, text: bytes) -> None:
    encoder = simple("amount", oid, modifier, compiled=compiled)
    with pytest.raises(Malformed, match=r"public\.orders.*amount"):
        encoder.change(b"", 0, 0, [b"1", text, b"note"])
    with pytest.raises(Malformed, match=r"public\.orders.*amount"):
        encoder.encode_copy_chunk(b"1\t" + text + b"\tnote\n", b"")
    many = b"".join(b"%d\t%s\tnote\n" % (index, text) for index in range(300))
    with pytest.raises(Malformed, match=r"public\.orders.*amount"):
        encoder.encode_copy_chunk(many, b"")


@both_codecs
@pytest.mark.parametrize("row", [[b"1", b"2"], [b"1", b"2", b"3", b"4"], [None, b"2", b"3"], [b"1", UNCHANGED, b"3"]])
def test_a_row_not_of_its_relation_is_malformed(compiled: bool, row: list[Any]) -> None:
    encoder = simple("amount", 23, compiled=compiled)
    with pytest.raises(Malformed, match=r"public\.orders"):
        encoder.change(b"", 0, 0, row)


@both_codecs
@pytest.mark.parametrize(
    "data", [b"1\t2\n", b"1\t2\t3\t4\n", b"1\t2\t3", rb"\N" b"\t2\t3\n", b"1\t2\t\\x\n", b"1\t2\n3\t4\t5\t6\n"]
)
def test_lines_not_of_their_relation_are_malformed(compiled: bool, data: bytes) -> None:
    with pytest.raises(Malformed, match=r"public\.orders"):
        simple("amount", 23, compiled=compiled).encode_copy_chunk(data, b"")


@both_codecs
def test_no_lines_are_no_records(compiled: bool) -> None:
    assert simple("amount", 23, compiled=compiled).encode_copy_chunk(b"", b"") == ([], [])


def test_the_key_must_be_columns() -> None:
    relation = simple("amount", 23).relation
    with pytest.raises(UsageError, match="nothing"):
        Encoder(
            relation, "gitlab_main", ["nothing"], origin=Origin("main", "postgres"), value_schema_id=7, key_schema_id=8
        )
    assert value_schema(relation, "gitlab_main") == value_schema(relation, "gitlab_main")
