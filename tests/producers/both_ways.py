"""Processes the same messages as runs of changes and one by one, each way with a capture and a table of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from producers.publish.capture import Capture
from producers.publish.table_publisher import TableFeed, TableTopic
from producers.snapshot.chunk_rules import Unseen
from producers.stream import messages as m
from producers.stream.pgoutput import Decoder
from schemas.errors import Malformed
from schemas.events import Relation
from schemas.positions import Lsn, Position
from tests.producers.captures import TABLE, MemoryRegistry, done
from tests.producers.pgoutput_encoder import encode

MS: Final = 1_700_000_000_123
BEFORE: Final = Position(Lsn(50), 0)


@dataclass(frozen=True)
class Setup:
    """What decides how a table's changes are processed; `recorded` is the position at the start of the session."""

    relation: Relation
    upserts: bool = False
    complete_rows: bool = False
    largest: int = 1 << 20
    copied: bool = True
    recorded: Position = BEFORE
    confirmed: int = 60

    def capture(self) -> tuple[Capture, TableFeed]:
        """Return a new capture of the table alone, and the table's feed."""
        feed = TableFeed(
            "main",
            replace(TABLE, relation=self.relation, upserts=self.upserts),
            TableTopic(3, self.largest),
            MemoryRegistry(),
            done() if self.copied else None,
            not_before=7,
            complete_rows=self.complete_rows,
        )
        return Capture([feed], self.recorded, Lsn(self.confirmed), Unseen()), feed


def payloads(messages: Sequence[m.Message]) -> list[bytes]:
    """Return the messages as a server sends them, each relation described before its first change."""
    described: set[int] = set()
    sent: list[bytes] = []
    for message in messages:
        if isinstance(message, m.Insert | m.Update | m.Delete):
            relation = message.relation
            if relation.oid not in described:
                described.add(relation.oid)
                sent.append(encode(m.RelationMessage(relation, message.xid)))
            sent.append(encode(message, full_before=relation.replica_identity == "f"))
        else:
            sent.append(encode(message))
    return sent


def outcomes(setup: Setup, sent: Sequence[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what comes of the messages as runs, and one by one."""
    return _outcome(setup, list(sent), runs=True), _outcome(setup, list(sent), runs=False)


def _outcome(setup: Setup, sent: list[bytes], *, runs: bool) -> dict[str, Any]:
    capture, feed = setup.capture()
    error = None
    try:
        for message in _read(sent) if runs else map(Decoder().decode, sent):
            # Blocks are read back without these, as in producers.stream.reassembly.
            if not isinstance(message, m.StreamStart | m.StreamStop):
                capture.handle(message)
            capture._now_ms = MS  # the transaction's start, which either way has its own
    except Malformed as refusal:
        error = str(refusal)
    return {
        "error": error,
        "records": feed.waiting,
        "position": (capture.position, capture.confirmed, capture.moved, capture.commit_ms),
        "published": capture.published,
        "state": feed.state,
        "incomplete": feed.copy.incomplete.state,
        "unseen": capture.unseen.xids,
    }


def _read(sent: list[bytes]) -> Iterator[m.Message]:
    """Decode as far as there is no error: the other way does not come to it earlier either."""
    decoder, place = Decoder(), 0
    while place < len(sent):
        message, place = decoder.read(sent, place)
        yield message
