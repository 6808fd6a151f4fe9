"""The decoder reads what the encoder wrote, and raises only Malformed for arbitrary bytes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import TRUNCATE_KEY
from schemas.codec.decoder import Decoder, KeyDecoder, projection
from schemas.codec.encoder import Encoder
from schemas.codec.header import HeaderReader
from schemas.errors import Malformed, UsageError
from schemas.events import UNCHANGED, ChangeEvent, Column, Op, Origin, Relation, Source
from schemas.positions import Lsn, Position
from schemas.wire import wire_header
from tests.schemas.codec.rows import Sample, plain_key, same, samples

LSN = Lsn(0x16_B374_D848)
SEEN, COMMITTED = 1_700_000_000_123, 1_700_000_000_000


def encoder_of(sample: Sample) -> Encoder:
    return Encoder(
        sample.relation,
        "gitlab_main",
        sample.key,
        origin=Origin("main", "postgres"),
        value_schema_id=7,
        key_schema_id=8,
    )


def written(sample: Sample) -> list[tuple[bytes, bytes]]:
    """Return one record of each kind that the sample's first and last rows can make."""
    encoder = encoder_of(sample)
    old, new = sample.texts[0], sample.texts[-1]

    def prefix(op: Op) -> bytes:
        return encoder.event_prefix(op, lsn=LSN, xid=77, ts_ms=COMMITTED)

    return [
        encoder.change(prefix(Op.CREATE), 0, SEEN, new),
        encoder.change(prefix(Op.UPDATE), 1, SEEN, new),
        encoder.update(prefix(Op.UPDATE), 20_000, SEEN, old, new),
        encoder.delete(prefix(Op.DELETE), 1 << 40, SEEN, old),
        (wire_header(9), encoder.truncate(prefix(Op.TRUNCATE), 4, SEEN)),
    ]


def same_row(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return list(left) == list(right) and all(same(left[name], right[name]) for name in left)


@given(samples(unchanged=True))
@settings(deadline=None)
def test_events_come_back_as_they_were(sample: Sample) -> None:
    encoder = encoder_of(sample)
    decoder, keys = Decoder(encoder.value_schema), KeyDecoder(encoder.key_schema)
    records = written(sample)
    full = sample.relation.replica_identity == "f"
    new = sample.values[-1]
    old = {
        # A column stored apart is never left out of an old row that the log has in full.
        name: (None if value is UNCHANGED else value) if full or name in sample.relation.identity_columns else UNCHANGED
        for name, value in sample.values[0].items()
    }
    expected = [("c", 0, None, new), ("u", 1, None, new), ("u", 20_000, old, new),
                ("d", 1 << 40, old, None), ("t", 4, None, None)]  # fmt: skip
    for (_, value), (op, ordinal, before, after) in zip(records, expected, strict=True):
        event = decoder.decode(value)
        position = Position(LSN, ordinal)
        table = sample.relation.table
        assert event.source == Source("main", "gitlab_main", "public", table, position, 77, COMMITTED, False)
        assert (event.op, event.ts_ms) == (op, SEEN)
        assert same_row(event.before, before)
        assert same_row(event.after, after)
        header = HeaderReader()(value)
        assert header[:4] == (op, "main", "gitlab_main", position)
    names = [column.name for column in sample.relation.columns]
    texts = dict(zip(names, sample.texts[-1], strict=True))
    assert keys.decode_key(records[0][0]) == {name: plain_key(new[name], texts[name]) for name in sample.key}
    assert KeyDecoder(TRUNCATE_KEY).decode_key(records[-1][0]) == {}


@given(samples(unchanged=True), st.data())
@settings(deadline=None)
def test_a_projection_is_the_event_with_fewer_columns(sample: Sample, data: st.DataObject) -> None:
    encoder = encoder_of(sample)
    names = [column.name for column in sample.relation.columns]
    wanted = data.draw(st.lists(st.sampled_from(names), unique=True))
    decode, project = Decoder(encoder.value_schema).decode, projection(encoder.value_schema, wanted)
    for _, value in written(sample):
        event, fewer = decode(value), project(value)
        assert (fewer.op, fewer.source, fewer.ts_ms) == (event.op, event.source, event.ts_ms)
        for row, part in ((event.before, fewer.before), (event.after, fewer.after)):
            assert same_row(part, row and {name: cell for name, cell in row.items() if name in wanted})


@given(samples(unchanged=True, rows=2), st.data())
@settings(deadline=None)
def test_arbitrary_bytes_are_malformed_or_an_event(sample: Sample, data: st.DataObject) -> None:
    encoder = encoder_of(sample)
    decode = Decoder(encoder.value_schema).decode
    project = projection(encoder.value_schema, [sample.key[0], sample.relation.columns[-1].name])
    whole = data.draw(st.sampled_from(written(sample)))[1]
    with pytest.raises(Malformed):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    junk = data.draw(st.binary(max_size=60))
    for value in (bytes(mutated), whole[: data.draw(st.integers(0, len(whole)))], whole + junk, junk):
        for read in (decode, project):
            with contextlib.suppress(Malformed):
                assert isinstance(read(value), ChangeEvent)
        with contextlib.suppress(Malformed):
            HeaderReader()(value)
        with contextlib.suppress(Malformed):
            KeyDecoder(encoder.key_schema).decode_key(value)


def notes() -> Encoder:
    columns = (Column("id", 20), Column("note", 25), Column("state", 25))
    relation = Relation(1, "public", "notes", "d", columns, ("id",))
    return Encoder(
        relation, "gitlab_main", ["id"], origin=Origin("main", "postgres"), value_schema_id=7, key_schema_id=8
    )


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 8191, 8192, 1 << 20])
def test_texts_of_every_length(length: int) -> None:
    encoder = notes()
    prefix = encoder.event_prefix(Op.CREATE, lsn=LSN, xid=1, ts_ms=COMMITTED)
    _, value = encoder.change(prefix, 0, SEEN, [b"1", b"n" * length, b"open"])
    expected = {"id": 1, "note": "n" * length, "state": "open"}
    assert Decoder(encoder.value_schema).decode(value).after == expected
    for wanted in (["id"], ["note"], ["state"], ["id", "note", "state"], []):
        after = projection(encoder.value_schema, wanted)(value).after
        assert after == {name: expected[name] for name in wanted}


def test_an_error_names_no_value_and_an_unknown_column_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing"):
        projection(notes().value_schema, ["nothing"])
    for make in (Decoder, lambda schema: projection(schema, [])):
        with pytest.raises(Malformed):
            make({"type": "record", "name": "Other", "fields": []})


def test_a_count_of_names_beyond_the_record_ends() -> None:
    encoder = notes()
    start = encoder.event_prefix(Op.CREATE, lsn=LSN, xid=1, ts_ms=COMMITTED) + b"\0\0"
    for count in (
        b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x80" * 30,
    ):
        for read in (Decoder(encoder.value_schema).decode, projection(encoder.value_schema, ["id"])):
            with pytest.raises(Malformed):
                read(start + count + b"\0" * 40)


@pytest.mark.parametrize("compiled", [True, False])
def test_record_of_another_schema_is_refused_by_every_reader(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with more in it than the schema says, and one that leaves out a column that there is not."""
    if not compiled:
        monkeypatch.setattr("schemas.codec.implementation.compiled", None)
    encoder = notes()
    prefix = encoder.event_prefix(Op.CREATE, lsn=LSN, xid=1, ts_ms=COMMITTED)
    _, longer = encoder.change(prefix, 0, SEEN, [b"1", b"a note", b"open"])
    _, lacking = encoder.change(prefix, 0, SEEN, [b"1", UNCHANGED, b"open"])
    for wanted in (["id", "note", "state"], ["id"]):
        for read in (Decoder(encoder.value_schema).decode, projection(encoder.value_schema, wanted)):
            read(longer)
            read(lacking)
            for broken in (longer + b"\0", lacking.replace(b"note", b"gone")):
                with pytest.raises(Malformed):
                    read(broken)
