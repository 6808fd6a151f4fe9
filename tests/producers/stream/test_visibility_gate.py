"""The visibility gate keeps what other sessions do not see yet, in order."""

from __future__ import annotations

import threading

import pytest

from consumers.testing.waiting import PATIENCE
from infra.service import log
from producers.stream.messages import Begin, Commit, Message, RelationMessage
from producers.stream.visibility_gate import Sees, VisibilityGate
from schemas.events import Relation
from schemas.positions import Lsn


class Stream:
    """The gate's input, one list per read; counts the answers to the server."""

    flushed = Lsn(7)

    def __init__(self, *reads: list[Message]) -> None:
        self.reads = list(reads)
        self.answers: list[Lsn] = []
        self.visible: set[int] = set()
        self.snapshots = 0
        self.awaited = False
        self.backend_pid = 0

    def read(self, limit: int, timeout: float) -> list[Message]:
        del limit, timeout
        return self.reads.pop(0) if self.reads else []

    def confirm(self, flushed: Lsn) -> None:
        self.answers.append(flushed)

    def take(self) -> Sees:
        self.snapshots += 1
        return self.visible.__contains__


def transaction(xid: int) -> list[Message]:
    return [Begin(Lsn(xid), 0, xid), Commit(Lsn(xid), Lsn(xid + 1), 0)]


def describing(xid: int) -> list[Message]:
    """A transaction that describes a table."""
    begin, commit = transaction(xid)
    return [begin, RelationMessage(Relation(1, "public", "t", "d", (), ()), None), commit]


def gate(stream: Stream, kind: type[Begin] | type[RelationMessage] = Begin) -> VisibilityGate:
    return VisibilityGate(stream, stream.take, lambda: stream.awaited, stream, log.get(), kind=kind)


def test_gate_passes_what_is_visible_with_one_snapshot() -> None:
    stream = Stream([*transaction(10), *transaction(11)])
    stream.visible = {10, 11}
    assert gate(stream).read(100, 0) == [*transaction(10), *transaction(11)]
    assert stream.snapshots == 1


def test_gate_takes_no_snapshot_inside_transaction() -> None:
    stream = Stream([transaction(10)[1]], [])
    assert gate(stream).read(100, 0) == [transaction(10)[1]]
    assert gate(stream).read(100, 0) == []
    assert stream.snapshots == 0


def test_gate_keeps_transaction_and_all_after_it_in_order() -> None:
    stream = Stream([*transaction(10), *transaction(11), *transaction(12)], transaction(13))
    stream.visible = {10, 12, 13}
    gated = gate(stream)
    assert gated.read(100, 0) == transaction(10)
    assert gated.read(100, 0) == []
    assert stream.reads, "nothing more is read meanwhile"
    stream.visible.add(11)
    assert gated.read(100, 0) == [*transaction(11), *transaction(12)]
    assert gated.read(100, 0) == transaction(13)


def test_gate_answers_server_without_confirming_more_while_it_waits() -> None:
    stream = Stream(transaction(10))
    gated = gate(stream)
    assert gated.read(100, 0) == []
    assert gated.read(100, 0) == []
    assert stream.answers == [Lsn(7)]


def test_gate_returns_as_soon_as_transaction_is_visible() -> None:
    stream = Stream(transaction(10))
    gated = gate(stream)
    gated.read(100, 0)
    later = threading.Timer(0.05, stream.visible.add, (10,))
    later.start()
    assert gated.read(100, PATIENCE) == transaction(10)
    later.join()


def test_gate_of_relations_passes_other_messages_without_snapshot() -> None:
    stream = Stream([*transaction(10), *transaction(11)])
    assert gate(stream, RelationMessage).read(100, 0) == [*transaction(10), *transaction(11)]
    assert stream.snapshots == 0


@pytest.mark.parametrize("cut", [False, True], ids=["one read", "a read that ends behind the beginning"])
def test_gate_of_relations_waits_until_transaction_is_visible(cut: bool) -> None:
    begin, description, commit = describing(11)
    reads = [[*transaction(10), begin], [description, commit]] if cut else [[*transaction(10), *describing(11)]]
    stream = Stream(*reads, transaction(12))
    gated = gate(stream, RelationMessage)
    assert gated.read(100, 0) == [*transaction(10), begin]
    assert gated.read(100, 0) == []
    assert gated.read(100, 0) == []
    assert len(stream.reads) == 1, "nothing more is read meanwhile"
    stream.visible.add(11)
    assert gated.read(100, 0) == [description, commit]
    assert gated.read(100, 0) == transaction(12)


@pytest.mark.parametrize("kind", [Begin, RelationMessage])
def test_gate_returns_a_transaction_that_waits_for_this_stream(kind: type[Begin] | type[RelationMessage]) -> None:
    stream = Stream([*describing(10), *describing(11)])
    stream.awaited = True
    gated = gate(stream, kind)
    gated.read(100, 0)
    gated.read(100, 0)
    assert gated.read(100, 0)[-1] in (describing(10)[-1], describing(11)[0])
    stream.visible = {10, 11}
    assert gated.read(100, 0)[-1] == describing(11)[-1]


# On real servers.
