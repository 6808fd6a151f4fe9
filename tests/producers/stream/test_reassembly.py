"""Transactions streamed in progress are returned like ordinary ones."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from producers.source import slots
from producers.stream import messages as m
from producers.stream.connection import ReplicationStream, StreamOptions
from producers.stream.frames import Received
from producers.stream.reassembly import Incoming
from producers.stream.spill import SpillDirectory
from producers.stream.start_command import Streaming
from schemas.errors import Malformed
from schemas.events import Column, Relation
from schemas.positions import Lsn
from tests.conftest import Database
from tests.producers.pgoutput_encoder import encode
from tests.producers.replicas import PUBLICATION, emit_message, one_by_one, prepare

T = Relation(1, "public", "t", "d", (Column("id", 23),), ("id",))
T_WIDER = Relation(1, "public", "t", "d", (Column("id", 23), Column("v", 25)), ("id",))


class Recorded:
    """A recorded stream: each read returns the next batch; `answers` counts reads of no frames."""

    def __init__(self, *batches: Sequence[m.Message]) -> None:
        self._batches = list(batches)
        self.answers = 0

    def read(self, max_messages: int, timeout: float) -> list[Received]:  # noqa: ARG002  # it never waits
        if max_messages == 0:
            self.answers += 1
            return []
        batch = self._batches.pop(0) if self._batches else []
        return [encode(message) for message in batch]


@pytest.fixture
def spills(tmp_path: Path) -> Iterator[SpillDirectory]:
    with SpillDirectory(tmp_path) as directory:
        yield directory


def read_all(incoming: Incoming) -> list[m.Message]:
    messages: list[m.Message] = []
    while batch := incoming.read(1_000, 0):
        messages += one_by_one(batch)
    return messages


def insert(number: int, xid: int | None, relation: Relation = T) -> m.Insert:
    return m.Insert(relation, [b"%d" % number, *[b"v"] * (len(relation.columns) - 1)], xid)


def commit(xid: int, lsn: int) -> m.StreamCommit:
    return m.StreamCommit(xid, Lsn(lsn), Lsn(lsn + 8), 1_700_000_000_000)


def test_blocks_of_two_transactions_come_in_the_order_of_their_commits(spills: SpillDirectory) -> None:
    told_5, told_6 = m.RelationMessage(T, 5), m.RelationMessage(T, 6)
    frames = Recorded(
        [m.StreamStart(5, True), told_5, insert(1, 5), m.StreamStop()],
        [m.StreamStart(6, True), told_6, insert(2, 6), m.StreamStop(), m.StreamStart(5, False), insert(3, 5)],
        [m.StreamStop(), commit(6, 100), commit(5, 200)],
    )
    incoming = Incoming(frames, spills)
    assert incoming.read(1_000, 0) == []
    assert incoming.read(1_000, 0) == []
    assert read_all(incoming) == [
        m.Begin(Lsn(100), 1_700_000_000_000, 6),
        told_6,
        insert(2, 6),
        m.Commit(Lsn(100), Lsn(108), 1_700_000_000_000),
        m.Begin(Lsn(200), 1_700_000_000_000, 5),
        told_5,
        insert(1, 5),
        insert(3, 5),
        m.Commit(Lsn(200), Lsn(208), 1_700_000_000_000),
    ]
    assert incoming.kept == 0


def test_abort_drops_only_its_subtransaction(spills: SpillDirectory) -> None:
    block: list[m.Message] = [m.RelationMessage(T, 5), insert(1, 5), insert(2, 6), insert(3, 7), insert(4, 6)]
    frames = Recorded(
        [
            m.StreamStart(5, True),
            *block,
            m.StreamStop(),
            m.StreamAbort(5, 6, None, None),
            m.StreamStart(5, False),
            insert(5, 5),
            m.StreamStop(),
            commit(5, 100),
        ]
    )
    changes = [each for each in read_all(Incoming(frames, spills)) if isinstance(each, m.Insert)]
    assert changes == [insert(1, 5), insert(3, 7), insert(5, 5)]


def test_abort_of_transaction_leaves_nothing(spills: SpillDirectory) -> None:
    told = m.RelationMessage(T, 5)
    blocks: list[m.Message] = [m.StreamStart(5, True), told, insert(1, 5), m.StreamStop()]
    begin, end = m.Begin(Lsn(9), 0, 8), m.Commit(Lsn(9), Lsn(10), 0)
    incoming = Incoming(Recorded([*blocks, m.StreamAbort(5, 5, None, None), begin, end]), spills)
    assert read_all(incoming) == [begin, end]
    assert incoming.kept == 0


def test_relation_in_stream_block_applies_to_its_transaction_until_commit(spills: SpillDirectory) -> None:
    """Changes of another transaction meanwhile have the earlier table."""
    known = m.RelationMessage(T, None)
    begin, end = m.Begin(Lsn(9), 0, 8), m.Commit(Lsn(9), Lsn(10), 0)
    later, last = m.Begin(Lsn(209), 0, 9), m.Commit(Lsn(209), Lsn(210), 0)
    frames = Recorded(
        [
            begin,
            known,
            insert(1, None),
            end,
            m.StreamStart(5, True),
            m.RelationMessage(T_WIDER, 5),
            insert(2, 5, T_WIDER),
            m.StreamStop(),
            begin,
            insert(3, None),
            end,
            commit(5, 100),
            later,
            insert(4, None, T_WIDER),
            last,
        ]
    )
    messages = read_all(Incoming(frames, spills))
    assert [(each.after, each.relation) for each in messages if isinstance(each, m.Insert)] == [
        ([b"1"], T),
        ([b"3"], T),
        ([b"2", b"v"], T_WIDER),
        ([b"4", b"v"], T_WIDER),
    ]


def test_no_frames_are_read_during_replay_but_server_is_answered(spills: SpillDirectory) -> None:
    rows = [m.Insert(T, [b"%0200d" % number], 5) for number in range(20_000)]
    behind: list[m.Message] = [m.Begin(Lsn(109), 0, 8), m.Commit(Lsn(109), Lsn(110), 0)]
    frames = Recorded(
        [m.StreamStart(5, True), m.RelationMessage(T, 5), *rows, m.StreamStop(), commit(5, 100), *behind],
        [m.Begin(Lsn(209), 0, 9), m.Commit(Lsn(209), Lsn(210), 0)],
    )
    incoming = Incoming(frames, spills)
    parts = []
    while part := incoming.read(1_000, 0):
        parts.append(one_by_one(part))
    assert max(map(len, parts)) < 10_000
    assert frames.answers >= 4
    messages = [each for part in parts for each in part]
    assert [each for each in messages if isinstance(each, m.Insert)] == rows
    assert [each.final_lsn for each in messages if isinstance(each, m.Begin)] == [100, 109, 209]


@pytest.mark.parametrize("message", [m.StreamStart(5, False), commit(5, 100)])
def test_transaction_without_start_is_malformed(spills: SpillDirectory, message: m.Message) -> None:
    with pytest.raises(Malformed, match="transaction 5"):
        read_all(Incoming(Recorded([message]), spills))


SCHEMA = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)"
SMALL_MEMORY = "-c logical_decoding_work_mem=64kB"


def work(connection: psycopg.Connection[Any], chance: random.Random, depth: int = 0) -> None:
    """Do random things in one transaction, large and small, some of them in savepoints that are rolled back."""
    for _ in range(chance.randint(1, 4)):
        match chance.randint(0, 5):
            case 0 | 1:
                table, rows = chance.choice("tu"), chance.choice((1, 500, 2_000))
                start = chance.randint(0, 1 << 30)
                connection.execute(
                    f"INSERT INTO {table} SELECT {start} + i, repeat('x', 60) FROM generate_series(1, {rows}) i"
                    " ON CONFLICT DO NOTHING".encode()
                )
            case 2:
                connection.execute(b"UPDATE t SET v = v || 'y' WHERE id % 7 = 0")
            case 3:
                connection.execute(b"DELETE FROM u WHERE id % 5 = 0")
            case 4 if depth < 3:
                with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
                    work(connection, chance, depth + 1)
                    if chance.random() < 0.5:
                        connection.execute("SELECT 1 / 0")
            case _:
                connection.execute(f"ALTER TABLE t ADD c_{chance.randint(0, 1 << 30)} int".encode())


@pytest.mark.stack
@pytest.mark.parametrize("streaming", [Streaming.ON, Streaming.PARALLEL])
@pytest.mark.parametrize("seed", range(3))
def test_messages_are_equal_with_and_without_streaming(
    database: Database, spills: SpillDirectory, seed: int, streaming: Streaming
) -> None:
    connection = database.connect()
    connection.execute(SCHEMA)
    plain, streamed = f"s_{uuid.uuid4().hex}", f"s_{uuid.uuid4().hex}"
    start = prepare(connection, plain)
    slots.create(connection, streamed, failover=False)
    chance = random.Random(seed)
    for _ in range(12):
        with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
            work(connection, chance)
            if chance.random() < 0.3:
                connection.execute("SELECT 1 / 0")
    end = emit_message(connection, "end")
    dsn = make_conninfo(database.dsn, options=SMALL_MEMORY)
    seen = []
    for slot, how in ((plain, Streaming.OFF), (streamed, streaming)):
        with ReplicationStream(dsn, slot, PUBLICATION, start, StreamOptions(streaming=how)) as stream:
            incoming = Incoming(stream, spills)
            messages: list[m.Message] = []
            kept = 0
            while not any(isinstance(each, m.Commit) and each.end_lsn >= end for each in messages):
                messages += one_by_one(incoming.read(50, 1))  # too few for a large transaction in one read
                kept = max(kept, incoming.kept)
            assert (kept > 0) == (how is not Streaming.OFF)
            incoming.close()
        seen.append([told(each) for each in messages if not isinstance(each, m.RelationMessage | m.LogicalMessage)])
    assert seen[0] == seen[1]


def told(message: m.Message) -> tuple[object, ...]:
    """Return a message without its subtransaction's id, which only stream blocks have."""
    return (type(message).__name__, *(each for name, each in message._asdict().items() if name != "xid"))
