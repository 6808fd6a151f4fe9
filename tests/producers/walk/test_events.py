"""Encoding of a walk's rows: names of any bytes, and times of any size."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.schema_registry.registry_identity import fingerprint
from infra.schema_registry.topic_registry import AvroSchema
from producers.walk.directory import Found, Repository, Unread
from producers.walk.events import KEY, RELATION, Kind, WalkEncoder, escaped, path_text, timestamptz
from schemas.avro import key_schema, value_schema
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.events import ChangeEvent, Row
from schemas.positions import Position

DECODER = Decoder(value_schema(RELATION, "praefect"))
KEYS = KeyDecoder(key_schema(RELATION, "praefect", KEY))


class MemoryRegistry:
    """A registry in a list: a schema's id is its index, counted from one."""

    def __init__(self) -> None:
        self._schemas: list[tuple[str, AvroSchema]] = []

    def register(self, subject: str, schema: AvroSchema) -> int:
        self._schemas.append((subject, schema))
        return len(self._schemas)

    def schema(self, schema_id: int) -> AvroSchema:
        return self._schemas[schema_id - 1][1]


def encoder(**more: int) -> WalkEncoder:
    arguments = {"walk_id": 7, "is_primary": True, "partitions": 3, **more}
    return WalkEncoder(MemoryRegistry(), "t.praefect.storage_walk", "default", "gitaly-0", **arguments)  # type: ignore[arg-type]


def test_walk_has_the_ids_of_its_schemas_to_record() -> None:
    key, value = key_schema(RELATION, "praefect", KEY), value_schema(RELATION, "praefect")
    assert encoder().registered == {1: fingerprint(key), 2: fingerprint(value)}


def row_of(record: dict[str, bytes]) -> Row:
    event = event_of(record)
    assert event.after is not None
    assert KEYS.decode_key(record["key"]) == {name: event.after[name] for name in KEY}
    return event.after


def event_of(record: dict[str, bytes]) -> ChangeEvent:
    return DECODER.decode(record["value"])


def found(what: Found) -> Row:
    return row_of(encoder().found(what)[0])


def test_repository_is_encoded_as_a_row() -> None:
    assert found(Repository(b"@hashed/a.git", 1_700_000_000_123_456)) == {
        "virtual_storage": "default",
        "storage": "gitaly-0",
        "relative_path": "@hashed/a.git",
        "kind": "repository",
        "walk_id": 7,
        "is_primary": True,
        "modified_at": datetime(2023, 11, 14, 22, 13, 20, 123456, UTC),
        "detail": None,
        "repositories": None,
        "problems": None,
        "complete": None,
        "partitions": None,
    }


def test_each_partition_has_its_own_marks() -> None:
    walk = encoder()
    starts = walk.start()
    walk.found(Repository(b"a.git", 0))
    walk.found(Repository(b"\xff.git", 0))
    ends = walk.end()
    assert [mark["partition"] for mark in starts] == [mark["partition"] for mark in ends] == [0, 1, 2]
    assert [mark["key"] for mark in starts] == [mark["key"] for mark in ends]
    assert [row_of(mark)["relative_path"] for mark in ends] == ["/0", "/1", "/2"]
    assert {row_of(mark)["kind"] for mark in starts} == {Kind.START}
    assert {row_of(mark)["complete"] for mark in starts} == {None}
    for end in map(row_of, ends):
        assert (end["kind"], end["repositories"], end["problems"]) == (Kind.END, 1, 1)
        assert (end["complete"], end["partitions"]) == (True, 3)


def test_positions_grow_within_a_walk_and_from_walk_to_walk() -> None:
    positions = []
    for walk in (encoder(walk_id=1), encoder(walk_id=2)):
        records = [*walk.start(), walk.found(Repository(b"a", 0))[0], walk.found(Unread(b"b", ""))[0], *walk.end()]
        sources = [event_of(record).source for record in records]
        assert {source.database for source in sources} == {"default/gitaly-0"}
        positions += [source.position for source in sources]
    assert positions == [Position(number, ordinal) for number in (1, 2) for ordinal in range(8)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\nb.git", 'it\'s "quoted".git', "a\\b.git", "ä/🙂.git", "-rf", "a/ /b"])
def test_any_text_is_a_valid_repository_name(name: str) -> None:
    row = found(Repository(name.encode(), 0))
    assert (row["kind"], row["relative_path"]) == (Kind.REPOSITORY, name)


@pytest.mark.parametrize(
    ("path", "reported", "detail"),
    [
        (b"a/\xff.git", "/a/\\xff.git", "the name is not valid UTF-8, or contains NUL"),
        (b"a\0b", "/a\\x00b", "the name is not valid UTF-8, or contains NUL"),
        (b"../secret.git", "/../secret.git", "the path leaves the storage"),
        (b"a/../../b.git", "/a/../../b.git", "the path leaves the storage"),
        (b"/etc", "//etc", "the path leaves the storage"),
        (b"", "/", "the path leaves the storage"),
        (b".", "/.", "the path leaves the storage"),
    ],
)
def test_unrecordable_path_is_a_named_problem(path: bytes, reported: str, detail: str) -> None:
    walk = encoder()
    record, line = walk.found(Repository(path, 0))
    row = row_of(record)
    assert (row["kind"], row["relative_path"], row["detail"]) == (Kind.PROBLEM, reported, detail)
    assert line == f"{reported!r}: {detail}"
    assert (walk.repositories, walk.problems, walk.unread) == (0, 1, 0)


def test_unread_directory_is_a_problem_and_makes_the_walk_incomplete() -> None:
    walk = encoder()
    record, line = walk.found(Unread(b"a/closed", "Permission denied"))
    row = row_of(record)
    assert (row["kind"], row["relative_path"], row["detail"]) == (Kind.PROBLEM, "a/closed", "Permission denied")
    assert line == "'a/closed': Permission denied"
    assert [row_of(end)["complete"] for end in walk.end()] == [False] * 3


@given(st.sets(st.binary(min_size=1, max_size=6), min_size=2, max_size=2))
def test_escaped_paths_are_unique(paths: set[bytes]) -> None:
    one, other = map(escaped, paths)
    assert one != other
    assert one.isprintable()


@given(st.binary(max_size=8))
def test_text_is_what_postgresql_can_hold(path: bytes) -> None:
    text = path_text(path)
    assert text is None or (text.encode() == path and "\0" not in text)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, b"1970-01-01 00:00:00.000000+00"),
        (-1, b"1969-12-31 23:59:59.999999+00"),
        (-62_135_596_800_000_000, b"0001-01-01 00:00:00.000000+00"),
        (-62_135_596_800_000_001, b"-infinity"),
        (1 << 62, b"infinity"),
        (1 << 200, b"infinity"),
    ],
)
def test_any_time_is_encodable(micros: int, text: bytes) -> None:
    assert timestamptz(micros) == text
    row = found(Repository(b"a.git", micros))
    assert isinstance(row["modified_at"], str if b"infinity" in text else datetime)
