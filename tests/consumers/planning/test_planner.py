from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from confluent_kafka import KafkaError

from consumers.contract.decisions import Change, DeadLetter, Decision
from consumers.contract.migration import Options
from consumers.delivery.topics import UnknownSchemaId
from consumers.ledger.progress import Place
from consumers.migrations.skip_resets import SkipResets, SkipResetsOptions
from consumers.planning import planner as batches
from consumers.planning import prefilter
from consumers.planning.planner import Planner, SubBatch, origin_of
from schemas.avro import value_schema
from schemas.codec.encoder import Encoder
from schemas.errors import HeadraceError
from schemas.events import UNCHANGED, ChangeEvent, Op, Origin, Unchanged
from schemas.positions import Lsn, Offset
from tests.consumers.container_repositories import RELATION

HERE, THERE = Place("t", 0), Place("t", 1)


@dataclass
class FakeRecord:
    """A record as from Kafka; an event unless it has a `failure`."""

    at: int
    content: bytes | None
    place: Place = HERE
    failure: KafkaError | None = None

    def error(self) -> KafkaError | None:
        return self.failure

    def topic(self) -> str:
        return self.place.topic

    def partition(self) -> int:
        return self.place.partition

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes | None:
        return self.content


ENCODER = Encoder(RELATION, "gitlab_main", ("id",), origin=Origin("main", "main"), value_schema_id=3, key_schema_id=4)


def value(key: int, state: str | Unchanged = "default", reason: int | None = None) -> bytes:
    prefix = ENCODER.event_prefix(Op.UPDATE, lsn=Lsn(key), xid=1, ts_ms=1)
    texts = [b"%d" % key, b"1", b"n", b"0", b"2024-01-01 00:00:00+00", b"2024-01-01 00:00:00+00"]
    row = [*texts, state if isinstance(state, Unchanged) else state.encode()]
    return ENCODER.change(prefix, 0, 1, [*row, None if reason is None else b"%d" % reason, None, None, b"0", None])[1]


def wanted(key: int) -> bytes:
    return value(key, "import_skipped", 2)


def schemas(schema_id: int) -> dict[str, object]:
    if schema_id != 3:
        raise UnknownSchemaId(f"schema id {schema_id} is not in the registry")
    return value_schema(RELATION, "gitlab_main")


@pytest.fixture(autouse=True, params=[prefilter.sift_in_python, prefilter.sift], ids=["Python", "installed"])
def _sift(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan with the Python prefilter and with the installed one."""
    monkeypatch.setattr(batches, "sift", request.param)


@pytest.fixture
def planner() -> Planner:
    return Planner(SkipResets(SkipResetsOptions()), schemas, "main")


def end(at: int) -> FakeRecord:
    return FakeRecord(at, None, failure=KafkaError(KafkaError._PARTITION_EOF))


def plan(planner: Planner, records: Sequence[FakeRecord], limit: int = 100) -> list[SubBatch]:
    return list(planner.plan(records, {HERE: Offset(0), THERE: Offset(0)}, limit))


def test_any_number_of_skips_is_one_transaction(planner: Planner) -> None:
    (only,) = plan(planner, [FakeRecord(at, value(at)) for at in range(1_000)], limit=2)
    (advance,) = only.advances
    assert (advance.expected, advance.next_offset, advance.events) == (0, 1_000, 1_000)
    assert advance.skipped == {"no import_skipped in it": 1_000}
    assert only.changes == []


def test_transaction_ends_with_its_last_change(planner: Planner) -> None:
    records = [FakeRecord(at, wanted(at) if at % 3 == 0 else value(at)) for at in range(9)]
    first, second = plan(planner, records, limit=2)
    assert [change.key for change in first.changes + second.changes] == [0, 3, 6]
    assert (first.start, first.end, first.advances[0].next_offset) == (0, 4, 4)
    assert (second.start, second.end) == (4, 9)
    assert (second.advances[0].expected, second.advances[0].next_offset) == (4, 9)
    assert [sum(part.advances[0].skipped.values()) for part in (first, second)] == [2, 4]


def test_partitions_advance_together(planner: Planner) -> None:
    records = [FakeRecord(at // 2, wanted(at), HERE if at % 2 else THERE) for at in range(6)]
    first, second = plan(planner, records, limit=4)
    assert {advance.place: (advance.expected, advance.next_offset) for advance in first.advances} == {
        HERE: (0, 2),
        THERE: (0, 2),
    }
    assert {advance.place: (advance.expected, advance.next_offset) for advance in second.advances} == {
        HERE: (2, 3),
        THERE: (2, 3),
    }


def test_two_schemas_may_alternate() -> None:
    planner = Planner(SkipResets(SkipResetsOptions()), lambda _: schemas(3), "main")
    contents = [wanted(0), b"\0\0\0\0\x09" + wanted(1)[5:], value(2), b"\0\0\0\0\x09" + value(3)[5:], wanted(4)]
    (only,) = plan(planner, [FakeRecord(at, content) for at, content in enumerate(contents)])
    assert [change.key for change in only.changes] == [0, 1, 4]
    assert only.advances[0].skipped == {"no import_skipped in it": 2}


def test_tables_may_share_partition_numbers() -> None:
    class OfTwo(SkipResets):
        tables = ("public.container_repositories", "public.others")  # type: ignore[assignment]

    places = [Place("t", 0), Place("u", 0)]
    records = [FakeRecord(at // 2, wanted(at), places[at % 2]) for at in range(6)]
    planner = Planner(OfTwo(SkipResetsOptions()), schemas, "main")
    (only,) = planner.plan(records, dict.fromkeys(places, Offset(0)), 10)
    assert [change.key for change in only.changes] == list(range(6))
    assert [(advance.place, advance.next_offset, advance.changes) for advance in only.advances] == [
        (place, 3, 3) for place in places
    ]


def test_schema_of_ignored_records_is_not_looked_up() -> None:
    foreign = b"\0\0\0\0\x09" + wanted(1)[5:]
    asked: list[int] = []

    def counted(schema_id: int) -> dict[str, object]:
        asked.append(schema_id)
        return schemas(schema_id)

    planner = Planner(SkipResets(SkipResetsOptions()), counted, "main")
    (only,) = planner.plan([FakeRecord(0, foreign), FakeRecord(1, wanted(1))], {HERE: Offset(1)}, 10)
    assert [change.key for change in only.changes] == [1]
    assert asked == [3]


def test_records_before_the_next_offset_are_ignored(planner: Planner) -> None:
    records = [FakeRecord(4, wanted(4)), FakeRecord(5, wanted(5)), FakeRecord(0, wanted(9), Place("t", 7))]
    (only,) = planner.plan(records, {HERE: Offset(5)}, 10)
    assert [change.key for change in only.changes] == [5]
    assert [advance.place for advance in only.advances] == [HERE]


def test_end_of_partition_passes_transaction_markers(planner: Planner) -> None:
    (only,) = plan(planner, [FakeRecord(0, value(0)), end(3)])
    assert (only.advances[0].next_offset, only.advances[0].events) == (3, 1)
    assert plan(planner, [end(0)]) == []


def test_tombstones_are_counted(planner: Planner) -> None:
    (only,) = plan(planner, [FakeRecord(0, None), FakeRecord(1, value(1))])
    assert only.advances[0].skipped == {"tombstone": 1, "no import_skipped in it": 1}


def test_event_with_omitted_column_is_a_candidate(planner: Planner) -> None:
    (only,) = plan(planner, [FakeRecord(0, value(0)), FakeRecord(1, value(1, UNCHANGED, 2))])
    assert [change.key for change in only.changes] == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"nonsense", "a record that is not in Confluent's wire format"),
        (b"", "a record that is not in Confluent's wire format"),
        (b"\0\0\0\0\x09" + wanted(1)[5:], "schema id 9 is not in the registry"),
        (wanted(1).partition(b"import_skipped")[0] + b"import_skipped", "a record that does not match its schema"),
    ],
)
def test_undecodable_record_becomes_dead_letter(planner: Planner, content: bytes, reason: str) -> None:
    (only,) = plan(planner, [FakeRecord(0, wanted(0)), FakeRecord(1, content), FakeRecord(2, wanted(2))])
    assert [(letter.offset, letter.reason, letter.value) for letter in only.dead_letters] == [(1, reason, content)]
    assert [change.key for change in only.changes] == [0, 2]
    assert (only.advances[0].dead_letters, only.advances[0].next_offset) == (1, 3)


def test_sub_batch_can_be_replanned_smaller_with_a_dead_letter(planner: Planner) -> None:
    records = [FakeRecord(at, wanted(at)) for at in range(4)]
    (whole,) = plan(planner, records)
    part = records[whole.start : whole.end]
    overrides: dict[tuple[Place, Offset], Decision] = {origin_of(whole.origins[1]): DeadLetter("poison")}
    pieces = list(planner.plan(part, {HERE: Offset(0)}, 2, overrides))
    assert [change.key for piece in pieces for change in piece.changes] == [0, 2, 3]
    assert [(letter.offset, letter.reason) for piece in pieces for letter in piece.dead_letters] == [(1, "poison")]
    assert [piece.advances[0].next_offset for piece in pieces] == [2, 4]


class Confused(SkipResets):
    """Has a bug."""

    def decide(self, event: ChangeEvent) -> Decision:
        return Change({}[event.op])  # type: ignore[index]


def test_bug_in_decide_stops_with_place_and_without_values() -> None:
    options: Options = SkipResetsOptions()
    with pytest.raises(
        HeadraceError,
        match=r"decide\(\) raised KeyError for an event of .* at 0/0\+0, at .*test_planner\.py:\d+;",
    ) as stopped:
        plan(Planner(Confused(options), schemas, "main"), [FakeRecord(0, wanted(0))])
    assert "import_skipped" not in str(stopped.value)
