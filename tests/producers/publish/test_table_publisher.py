"""The feed of one table: chunks, recorded state, and resuming from it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from infra.postgres.key_order import Operators
from infra.schema_registry.registry_identity import RegistryChanged, fingerprint
from infra.state.positions import SnapshotState
from producers.publish.table_publisher import TableFeed, TableTopic, _room
from producers.snapshot.reader import ChunkRows
from producers.snapshot.resnapshot_rules import KeyRange
from producers.snapshot.table_snapshot import Bounds
from schemas.events import Column
from schemas.positions import Lsn, Position
from schemas.xid_snapshot import Moment, Snapshot
from tests.producers.captures import RELATION, TABLE, MemoryRegistry, done, feed, taken

STANDING = Position(Lsn(500), 4)
BEHIND = Position(Lsn(500), 5)
SNAPSHOT = Snapshot.parse("100:110:105")


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


def rows(*ids: int, lsn: int = 1000) -> ChunkRows:
    data = b"".join(b"%d\tv\n" % each for each in ids)
    return ChunkRows(data, len(ids), RELATION, Moment(SNAPSHOT, Lsn(lsn)))


@pytest.mark.parametrize("ordered", [True, False])
def test_table_stops_when_sort_order_of_key_changes_during_snapshot(registry: MemoryRegistry, ordered: bool) -> None:
    table = feed(registry, ordered=ordered)
    table.add_chunk(("2",), rows(1, 2), STANDING, 2)
    signs = tuple(("ext", sign) for sign in (">", ">=", "=", "<=", "<"))
    backwards = replace(TABLE, order=(Operators(signs),))
    three = TableTopic(3)
    again = TableFeed("main", replace(backwards, ordered=False), three, registry, table.state, not_before=7)
    assert again.state.stopped == "its key (id) sorts differently than when its snapshot began"
    from_scratch = TableFeed(
        "main", backwards, three, registry, again.state.model_copy(update={"from_scratch": True}), not_before=7
    )
    assert (from_scratch.state.stopped, from_scratch.state.order) == (None, "ext >")
    whole = TableFeed("main", backwards, three, registry, done(), not_before=7)
    assert (whole.state.stopped, whole.state.order) == (None, "ext >")


def test_rows_of_chunk_are_just_after_current_stream_position(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(("2",), rows(1, 2), STANDING, 2)
    assert taken(registry, table) == [
        ("r", {"id": 1}, BEHIND, {"id": 1, "v": "v"}),
        ("r", {"id": 2}, BEHIND, {"id": 2, "v": "v"}),
    ]
    assert table.take() == []


def test_chunks_are_counted_towards_planner_estimate(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(("2",), rows(1, 2), STANDING, 10)
    assert (table.state.rows, table.state.chunks_done, table.state.chunks, table.state.done) == (2, 1, 10, False)
    table.add_chunk(None, rows(3), STANDING, 10)
    assert (table.state.rows, table.state.chunks_done, table.state.chunks, table.state.done) == (3, 2, 2, True)
    assert table.judging


def test_another_process_resumes_from_recorded_state(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(("2",), rows(1, 2), STANDING, 2)
    again = feed(registry, SnapshotState.model_validate_json(table.state.model_dump_json()))
    assert again.state == table.state
    assert again.copy.bounds == Bounds(after=("2",))
    assert again.state.not_before == 7
    for key, xid in ((b"1", 99), (b"1", 105), (b"3", 105)):
        assert again.publishes((key,), xid, Lsn(900)) == table.publishes((key,), xid, Lsn(900))


def test_state_has_the_schema_ids_of_the_topic(registry: MemoryRegistry) -> None:
    table = feed(registry)
    assert table.state.registered == {number: fingerprint(each) for number, each in enumerate(registry.schemas)}
    assert len(table.state.registered) == 2
    table.settle(Lsn(500))
    table.encoder_for(replace(RELATION, columns=(*RELATION.columns, Column("added", 23))))
    assert table.settle(Lsn(500)), "recorded with the first records of the new schema"
    assert table.state.registered.keys() == {0, 1, 2}
    again = feed(registry, SnapshotState.model_validate_json(table.state.model_dump_json()))
    assert again.state.registered == table.state.registered


def test_state_of_an_older_headrace_gets_the_ids_of_its_schemas(registry: MemoryRegistry) -> None:
    older = json.loads(done().model_dump_json(exclude={"registered"}))
    assert feed(registry, SnapshotState.model_validate(older)).state.registered.keys() == {0, 1}


def test_topic_that_is_emptied_forgets_its_schema_ids(registry: MemoryRegistry) -> None:
    old = done().model_copy(update={"from_scratch": True, "registered": {4711: "0"}})
    table = feed(registry, old)
    table.restart_from_scratch(STANDING, 12)
    assert table.state.registered.keys() == {0, 1, 2}, "of keys, of values, and of the truncate's key"


def test_id_of_a_truncates_key_that_the_topic_has_for_another_schema_stops_the_producer(
    registry: MemoryRegistry,
) -> None:
    table = feed(registry, done().model_copy(update={"registered": {2: "0"}}))
    with pytest.raises(
        RegistryChanged, match=r"gave table public\.t schema id 2, which its topic has for another schema"
    ):
        table.empty(b"")


def test_id_that_the_topic_has_for_another_schema_stops_the_producer(registry: MemoryRegistry) -> None:
    with pytest.raises(
        RegistryChanged, match=r"gave table public\.t schema id 0, which its topic has for another schema"
    ):
        feed(registry, done().model_copy(update={"registered": {0: "0"}}))


def test_snapshot_passed_by_stream_affects_no_events(registry: MemoryRegistry) -> None:
    assert not feed(registry, done()).judging
    table = feed(registry)
    table.add_chunk(None, rows(1), STANDING, 2)
    assert table.settle(Lsn(500))
    assert not table.settle(Lsn(999))
    assert table.settle(Lsn(1000))
    assert not table.judging
    assert not table.settle(Lsn(1001))
    assert [(each.snapshot, each.lsn) for each in table.state.copied] == [(None, None)]


def test_truncate_leaves_nothing_to_copy(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(("2",), rows(1, 2), STANDING, 2)
    table.truncated(Lsn(1))
    assert table.settle(Lsn(500))
    assert not table.settle(Lsn(500))
    assert not table.judging
    assert not table.copying
    assert table.state.done


def test_topic_is_emptied_in_every_partition_before_resnapshot_from_scratch(registry: MemoryRegistry) -> None:
    table = feed(registry, done())
    table.restart_from_scratch(STANDING, 12)
    assert [record["partition"] for record in table.waiting] == list(range(table.partitions))
    assert {each[:1] + each[2:3] for each in taken(registry, table)} == {("t", BEHIND)}
    assert table.settle(Lsn(500))
    assert (table.state.done, table.state.copied, table.state.not_before) == (False, (), 12)
    assert not table.publishes((b"1",), 20, Lsn(900))


def test_a_chunk_is_cut_where_its_keys_would_not_fit_their_record(registry: MemoryRegistry) -> None:
    table = feed(registry, ordered=False)
    room = _room([b"\0" * 500] * 2000)
    assert room == 512 * 1024 // 500
    table.add_chunk(None, rows(*range(1, 4)), STANDING, 9)
    assert (table.copy.unread, table.state.done, table.state.rows) == (False, True, 3)


def test_the_keys_of_the_last_chunk_are_recorded_until_the_stream_has_passed_it(registry: MemoryRegistry) -> None:
    table = feed(registry, done(), ordered=False)
    table.ask(KeyRange(), 20)
    assert table.publishes((b"1",), 99, Lsn(900))
    table.add_chunk(("2",), rows(1, 2), STANDING, 2)
    again = feed(registry, SnapshotState.model_validate_json(table.state.model_dump_json()), ordered=False)
    for each in (table, again):
        assert not each.publishes((b"1",), 99, Lsn(900))
        assert each.publishes((b"1",), 105, Lsn(900))
        assert each.publishes((b"3",), 99, Lsn(900))
        assert not each.copy.ready
        assert each.settle(Lsn(1000))
        assert each.copy.ready
        assert each.publishes((b"1",), 99, Lsn(1001))
        assert each.copy.bounds == Bounds(after=("2",))


def test_events_seen_by_first_chunk_are_dropped_for_empty_topic(registry: MemoryRegistry) -> None:
    table = feed(registry, ordered=False)
    assert not table.publishes((b"1",), 99, Lsn(900))
    table.add_chunk(("2",), rows(1, 2), STANDING, 2)
    again = feed(registry, SnapshotState.model_validate_json(table.state.model_dump_json()), ordered=False)
    for each in (table, again):
        assert not each.publishes((b"3",), 99, Lsn(900)), "a later chunk has the row, or it is gone"
        assert each.publishes((b"3",), 105, Lsn(900))
        assert each.publishes((b"3",), 99, Lsn(1000))
        assert each.settle(Lsn(1000))
        assert each.publishes((b"3",), 99, Lsn(1001))


def test_request_waits_for_chunks_that_stream_has_not_passed(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.ask(KeyRange(), 20)
    assert table.state.asked == (), "the first snapshot reads it in any case"
    table.add_chunk(None, rows(1), STANDING, 2)
    table.ask(KeyRange(("1",), None), 20)
    table.ask(KeyRange(("1",), None), 20)
    assert not table.publishes((b"1",), 99, Lsn(900))
    assert table.copy.complete
    assert table.settle(Lsn(1000))
    assert table.state.asked == ()
    assert table.copy.bounds == Bounds(first=("1",))
    assert table.state.under_way
