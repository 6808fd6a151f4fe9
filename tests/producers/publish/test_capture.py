"""Records of messages: positions, events skipped after a restart, and events covered by a snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.state.snapshot_requests import SnapshotRequest, read_request
from producers.publish.capture import Capture
from producers.publish.table_publisher import TableFeed
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.reader import ChunkRows
from producers.stream import messages as pg
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Column, Relation
from schemas.positions import Lsn, Position
from schemas.xid_snapshot import Moment, Snapshot
from tests.producers.captures import OTHER, RELATION, MemoryRegistry, done, feed, taken, taken_events
from tests.producers.snapshot.model_database import REQUESTED, requested


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def table(registry: MemoryRegistry) -> TableFeed:
    """A table whose snapshot is complete."""
    return feed(registry, done())


STANDING = Position(Lsn(50), 0)


def capture(*feeds: TableFeed, position: Position = STANDING, confirmed: int = 60) -> Capture:
    return Capture(feeds, position, Lsn(confirmed), Unseen())


def insert(key: int, relation: Relation = RELATION) -> pg.Insert:
    values: pg.Values = [b"%d" % key, b"v"][: len(relation.columns)]
    return pg.Insert(relation, values, None)


def delete(key: int) -> pg.Delete:
    return pg.Delete(RELATION, [b"%d" % key, None], None)


def transaction(lsn: int, *changes: pg.Message, xid: int = 1) -> list[pg.Message]:
    return [pg.Begin(Lsn(lsn), 1234, xid), *changes, pg.Commit(Lsn(lsn), Lsn(lsn + 8), 1234)]


def handle(into: Capture, messages: list[pg.Message]) -> None:
    for message in messages:
        into.handle(message)


def places(registry: MemoryRegistry, table: TableFeed) -> list[tuple[str, object, Position | None]]:
    return [(op, key.get("id"), position) for op, key, position, _ in taken(registry, table)]


FIRST, SECOND = SnapshotRequest(table="public.t", first=("1",)), SnapshotRequest(table="public.t", from_scratch=True)


def ask(request: SnapshotRequest) -> pg.Insert:
    return pg.Insert(REQUESTED, requested(request), None)


def taken_from(into: Capture) -> list[SnapshotRequest]:
    return [read_request(row) for row in into.take_requests()]


def test_request_is_taken_with_position_after_it_even_inside_next_transaction(
    table: TableFeed,
) -> None:
    """The slot advances with that position: a request left for later would be lost with the process."""
    into = capture(table)
    handle(into, transaction(100, ask(FIRST)))
    begin, change, message, commit = transaction(200, insert(1), ask(SECOND))
    handle(into, [begin, change])
    assert into.confirmed == 108
    assert into.position == (200, 0)
    assert taken_from(into) == [FIRST]
    handle(into, [message])
    assert into.take_requests() == []
    handle(into, [commit])
    assert taken_from(into) == [SECOND]
    assert into.take_requests() == []


def test_each_change_has_its_ordinal_in_its_transaction(registry: MemoryRegistry, table: TableFeed) -> None:
    into = capture(table)
    handle(into, transaction(100, insert(1), insert(9, OTHER), insert(2)))
    assert places(registry, table) == [("c", 1, (100, 0)), ("c", 2, (100, 2))]
    assert (into.position, into.confirmed, into.moved) == (Position(Lsn(100), 2), 108, True)


def test_a_changed_key_is_a_delete_and_a_create(registry: MemoryRegistry, table: TableFeed) -> None:
    update = pg.Update(RELATION, [b"1", None], [b"2", b"v"], None)
    handle(capture(table), transaction(100, update))
    at = (100, 0)
    assert places(registry, table) == [("d", 1, at), ("tombstone", 1, None), ("c", 2, at)]


FULL = replace(RELATION, replica_identity="f", identity_columns=())
KNOWN: pg.Values = [b"1", b"old"]
NEW: pg.Values = [b"1", b"new"]
UPDATES = {
    "no old row": (RELATION, None, ("u", None), ("r", None)),
    "a part of the old row": (RELATION, [b"1", None], ("u", {"id": 1, "v": UNCHANGED}), ("r", None)),
    "the whole old row": (FULL, KNOWN, ("u", {"id": 1, "v": "old"}), ("u", {"id": 1, "v": "old"})),
}


@pytest.mark.parametrize("known", UPDATES)
@pytest.mark.parametrize("upserts", [False, True])
def test_update_without_whole_old_row_is_a_read_where_its_table_upserts(
    registry: MemoryRegistry, known: str, upserts: bool
) -> None:
    relation, before, *expected = UPDATES[known]
    table = feed(registry, done(), upserts=upserts)
    handle(capture(table), transaction(100, pg.Update(relation, before, NEW, None), xid=7))
    (event,) = taken_events(registry, table)
    assert (event.op, event.before) == expected[upserts]
    assert (event.after, event.source.xid, event.source.snapshot) == ({"id": 1, "v": "new"}, 7, False)


def test_changed_key_is_a_delete_and_a_create_where_its_table_upserts(registry: MemoryRegistry) -> None:
    table = feed(registry, done(), upserts=True)
    handle(capture(table), transaction(100, pg.Update(RELATION, [b"1", None], [b"2", b"v"], None)))
    assert [event.op for event in taken_events(registry, table)] == ["d", "c"]


def test_a_transaction_without_a_change_moves_the_position(table: TableFeed) -> None:
    into = capture(table)
    handle(into, transaction(100))
    assert (into.position, into.confirmed, into.moved) == (Position(Lsn(100), -1), 108, True)


RESTARTS = {
    "behind a whole transaction": (Position(Lsn(100), 2), 108, []),
    "in the middle of one": (Position(Lsn(100), 1), 60, [3]),
    "before its first change": (Position(Lsn(50), 0), 60, [1, 2, 3]),
    "far behind": (Position(Lsn(200), -1), 208, []),
}


@pytest.mark.parametrize("where", RESTARTS)
def test_recorded_events_are_skipped(registry: MemoryRegistry, table: TableFeed, where: str) -> None:
    position, confirmed, expected = RESTARTS[where]
    into = capture(table, position=position, confirmed=confirmed)
    handle(into, transaction(100, insert(1), insert(2), insert(3)))
    assert [key for _, key, _ in places(registry, table)] == expected
    assert into.moved == bool(expected)
    assert into.position >= position
    assert into.confirmed == 108 if expected else confirmed


def test_truncate_is_published_to_every_partition(registry: MemoryRegistry, table: TableFeed) -> None:
    handle(capture(table), transaction(100, pg.Truncate((OTHER, RELATION), False, False, None)))
    assert [record["partition"] for record in table.waiting] == [0, 1, 2]
    assert places(registry, table) == [("t", None, (100, 1))] * 3


def test_truncate_ends_snapshot_of_table(registry: MemoryRegistry) -> None:
    table = feed(registry)
    shown = ChunkRows(b"1\tv\n", 1, RELATION, Moment(Snapshot.parse("5:5:"), Lsn(90)))
    table.add_chunk(("5",), shown, Position(Lsn(50), 0), 9)
    table.take()
    into = capture(table)
    handle(into, transaction(100, insert(7), pg.Truncate((RELATION,), False, False, None), insert(8)))
    # The table has only rows written after the truncate.
    assert places(registry, table) == [*[("t", None, (100, 1))] * 3, ("c", 8, (100, 2))]
    assert not table.copying
    assert into.settle() == [table]


def test_events_covered_by_chunks_are_dropped(registry: MemoryRegistry) -> None:
    table = feed(registry)
    chunk = ChunkRows(b"1\tv\n", 1, RELATION, Moment(Snapshot.parse("10:12:11"), Lsn(1000)))
    table.add_chunk(("5",), chunk, Position(Lsn(50), 0), 9)
    table.take()
    into = capture(table)
    handle(into, transaction(100, insert(2), insert(6), delete(1), xid=9))
    assert places(registry, table) == []
    handle(into, transaction(110, insert(3), insert(7), delete(1), xid=11))
    assert places(registry, table) == [("c", 3, (110, 0)), ("d", 1, (110, 2)), ("tombstone", 1, None)]
    # A key that moves from a copied range into one not yet copied is only a delete.
    handle(into, transaction(120, pg.Update(RELATION, [b"3", None], [b"8", b"v"], None), xid=20))
    assert places(registry, table) == [("d", 3, (120, 0)), ("tombstone", 3, None)]


def test_a_transaction_is_unseen_from_its_first_change_on(registry: MemoryRegistry) -> None:
    """A chunk may be read while the stream is in the middle of it."""
    table = feed(registry)
    into = capture(table)
    handle(into, transaction(100, insert(1), xid=9)[:2])
    assert into.unseen.xids == (9,)


def test_transactions_are_not_noted_as_unseen_when_no_table_is_copied(table: TableFeed) -> None:
    into = capture(table)
    into.settle()
    handle(into, transaction(100, insert(1), xid=9))
    assert into.unseen.xids == ()


def test_transactions_are_noted_after_record_that_omits_a_value(table: TableFeed) -> None:
    """A read of the row waits for all transactions that may have written it since."""
    into = capture(table)
    into.settle()
    handle(into, transaction(100, insert(1), xid=9))
    moved = pg.Update(RELATION, [b"1", UNCHANGED], [b"2", UNCHANGED], None)
    handle(into, transaction(110, moved, xid=10))
    handle(into, transaction(120, insert(3), xid=11))
    assert table in into.settle()
    handle(into, transaction(130, insert(4), xid=12))
    assert table.state.incomplete.keys == (("2",),)
    assert into.unseen.xids == (10, 11, 12)


def test_only_a_record_with_a_new_key_is_noted_without_complete_rows(table: TableFeed) -> None:
    into = capture(table)
    handle(into, transaction(100, pg.Update(RELATION, None, [b"1", UNCHANGED], None)))
    assert not table.copy.incomplete.noted
    table.complete_rows = True
    handle(into, transaction(110, pg.Update(RELATION, None, [b"1", UNCHANGED], None)))
    handle(into, transaction(120, pg.Update(RELATION, [b"2", UNCHANGED], [b"2", UNCHANGED], None)))
    handle(into, transaction(130, pg.Update(RELATION, [b"3", b"v"], [b"3", UNCHANGED], None)))
    assert table.state.incomplete.keys == (("1",), ("2",))


def test_change_outside_transaction_is_malformed(table: TableFeed) -> None:
    with pytest.raises(Malformed, match=r"a change of public\.t outside of a transaction"):
        capture(table).handle(insert(1))


def test_unrequested_message_is_malformed(table: TableFeed) -> None:
    with pytest.raises(Malformed, match="unexpected StreamStop in a stream without large transactions in progress"):
        capture(table).handle(pg.StreamStop())


def test_row_without_key_stops_table(table: TableFeed) -> None:
    stopped = feed(MemoryRegistry())
    handle(capture(stopped), transaction(100, pg.Delete(RELATION, [None, None], None)))
    assert stopped.state.stopped == "public.t: a change lacks its key (id)"


def test_a_key_column_that_was_renamed_is_named(registry: MemoryRegistry, table: TableFeed) -> None:
    renamed = Relation(16_400, "public", "t", "d", (Column("key", 23), Column("v", 25)), ("key",))
    handle(capture(table), transaction(100, insert(1, renamed)))
    assert table.state.stopped == "key column id no longer exists"


def test_column_name_that_is_not_text_stops_table(registry: MemoryRegistry, table: TableFeed) -> None:
    named = replace(RELATION, columns=(*RELATION.columns, Column("n\udce9", 25)))
    into = capture(table)
    handle(into, transaction(100, pg.Insert(named, [b"1", b"x", b"y"], None)))
    assert table.state.stopped is not None
    assert "a column's name has bytes that are not UTF-8" in table.state.stopped
    assert places(registry, table) == []
