"""Throws broken messages at the decoder: `python -m tests.fuzz.messages --seconds N --seed S`.

Every execution must give a message or Malformed; anything else ends the run with the session that did it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import struct
import sys
import time

from producers import pgoutput_messages as m
from producers.pgoutput import Decoder
from producers.pgoutput_fields import NAMES
from producers.replication_frames import parse
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Column, Relation
from schemas.positions import Lsn
from tests.producers.pgoutput_encoder import encode

NASTY = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""Numbers at which counts, lengths and signs turn over."""

MS = 1_700_000_000_123
TABLE = Relation(7, "public", "repo", "d", (Column("id", 20), Column("name", 25), Column("note", 25)), ("id",))
WHOLE = Relation(8, "pg_catalog", "ü", "f", (Column("a", 23, 5), Column("b", 17)), ("a", "b"))


def session(xid: int | None) -> list[bytes]:
    """Return a valid run of messages with every kind of change, for a stream block when `xid` is given."""
    messages: list[m.Message] = [
        m.Origin(Lsn(9), "elsewhere"),
        m.TypeMessage(99, "public", "mood", xid),
        m.RelationMessage(TABLE, xid),
        m.RelationMessage(WHOLE, xid),
        m.Insert(TABLE, [b"1", b"a" * 300, None], xid),
        m.Update(TABLE, None, [b"1", b"b", UNCHANGED], xid),
        m.Update(TABLE, [b"1", UNCHANGED, UNCHANGED], [b"2", b"b", UNCHANGED], xid),
        m.Delete(TABLE, [b"2", UNCHANGED, UNCHANGED], xid),
        m.Insert(WHOLE, [b"5", m.Binary(b"\0\1")], xid),
        m.Truncate((TABLE, WHOLE), True, False, xid),
        m.LogicalMessage(True, Lsn(77), "headrace", b"1700000000000", xid),
    ]
    whole: list[m.Message] = [
        m.Update(WHOLE, [b"5", None], [b"6", None], xid),
        m.Delete(WHOLE, [b"6", b""], xid),
    ]
    body = [encode(each) for each in messages] + [encode(each, full_before=True) for each in whole]
    if xid is None:
        return [encode(m.Begin(Lsn(80), MS, 5)), *body, encode(m.Commit(Lsn(80), Lsn(90), MS))]
    tail: list[m.Message] = [
        m.StreamStop(),
        m.StreamAbort(xid, xid + 1, None, None),
        m.StreamAbort(xid, xid + 2, Lsn(85), MS),
        m.StreamCommit(xid, Lsn(80), Lsn(90), MS),
        m.BeginPrepare(Lsn(1), Lsn(2), MS, 6, "gid"),
        m.Prepare(Lsn(1), Lsn(2), MS, 6, "gid"),
        m.CommitPrepared(Lsn(1), Lsn(2), MS, 6, "gid"),
        m.RollbackPrepared(Lsn(1), Lsn(2), MS, MS, 6, "gid"),
        m.StreamPrepare(Lsn(1), Lsn(2), MS, 6, "gid"),
    ]
    return [encode(m.StreamStart(xid, True)), *body, *(encode(each) for each in tail)]


CORPUS = (session(None), session(600))


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Return `data` broken in one to three ways."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(data))
        match rng.randrange(7):
            case 0:
                data = data[:at]
            case 1:
                data += rng.randbytes(rng.randint(1, 9))
            case 2:
                data = data[:at] + rng.randbytes(1) + data[at + 1 :]
            case 3:
                form = rng.choice(("!B", "!H", "!I"))
                number = rng.choice(NASTY) & (256 ** struct.calcsize(form) - 1)
                packed = struct.pack(form, number)
                data = data[:at] + packed + data[at + len(packed) :]
            case 4:
                data = data[:at] + data[rng.randint(at, len(data)) :]
            case 5:
                data = data[:at] + data[rng.randint(0, at) : at] + data[at:]
            case _:
                data = bytes((rng.choice(list(NAMES)),)) + data[1:]
    return data


def run(rng: random.Random) -> tuple[int, int]:
    """Decode one session in which some messages are broken; return how many were tried and refused."""
    decoder = Decoder()
    tried = refused = 0
    for payload in rng.choice(CORPUS):
        broken = mutate(rng, payload) if rng.random() < 0.5 else payload
        if rng.random() < 0.02:
            broken = rng.randbytes(rng.randint(0, 64))
        tried += 1
        try:
            decoder.decode(broken)
        except Malformed:
            refused += 1
        with contextlib.suppress(Malformed):
            parse(rng.choice((b"w", b"k", b"")) + broken)
    return tried, refused


def main() -> int:
    """Run for the time asked, and print what was done; a failure's traceback follows its seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    deadline = time.monotonic() + arguments.seconds
    tried = refused = runs = 0
    while time.monotonic() < deadline:
        # A seed of its own a run, so that a failure can be had again alone.
        rng = random.Random(f"{seed}/{runs}")
        try:
            one, other = run(rng)
        except Exception:
            print(f"pgoutput: failed in run {runs} of seed {seed}", file=sys.stderr)
            raise
        tried, refused, runs = tried + one, refused + other, runs + 1
    print(f"pgoutput: {tried} executions, {refused} refused, 0 failures, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
