"""A producer killed at failpoints and at random moments, under random work; between two starts, sometimes a server."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import psycopg

from infra.stack import EmbeddedStack
from infra.state.snapshot_requests import SnapshotRequest
from tests.producers.crashes.failpoints import POINTS, Arming
from tests.producers.crashes.killing import TABLE, Crashes

_KILLS: Final = (6, 14)
_LIVES: Final = 8.0
"""Maximum lifetime of a producer in seconds: it is killed then if its failpoint was not reached."""


def play_round(stack: EmbeddedStack, directory: Path, seed: int) -> dict[str, Any]:
    """Play one round: the folded topic equals the table; positions are in order; a start re-reads at most one chunk."""
    draw = random.Random(seed)
    name = f"p{seed}x{draw.randrange(16**6):06x}"
    dsn = stack.postgres.create_database(name)
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=f"{name}-") as own, contextlib.ExitStack() as opened:
            crashes = Crashes(
                lambda: opened.enter_context(psycopg.connect(dsn, autocommit=True)),
                stack.endpoints.bootstrap_servers,
                name,
                dsn,
                Path(own),
                rows=draw.randrange(0, 1_500),
                chunk_rows=draw.choice((1, 3, 7, 20, 100)),
                partitions=draw.choice((1, 2, 3)),
                workers=draw.choice((1, 2, 4)),
            )
            try:
                return {"seed": seed, **_kill(stack, crashes, draw)}
            except BaseException:
                print(
                    "---", *crashes.config.with_suffix(".log").read_text().splitlines()[-30:], sep="\n", file=sys.stderr
                )
                raise
    finally:
        stack.postgres.drop_database(name)


def _kill(stack: EmbeddedStack, crashes: Crashes, draw: random.Random) -> dict[str, Any]:
    reached: dict[str, int] = {}
    servers = 0
    with crashes.work(
        draw.randrange(10**6), keys=draw.choice((50, 400, 2_000)), truncates=True, large=draw.choice((7, 40, 200))
    ) as work:
        for _ in range(draw.randint(*_KILLS)):
            arming = _drawn(draw)
            if crashes.dies_within(draw.uniform(1.0, _LIVES), arming) and arming is not None:
                reached[arming.point] = reached.get(arming.point, 0) + 1
            if draw.random() < 0.1:
                server = draw.choice((stack.kafka, stack.postgres))
                server.kill()
                server.start()
                crashes.reconnect()
                servers += 1
            if not crashes.under_way and draw.random() < 0.6:
                crashes.ask(_request(draw))
    crashes.settle()
    again = crashes.prove()
    return {
        "writes": work.transactions,
        "kills": crashes.kills,
        "of servers": servers,
        "chunks again": again,
        "points": reached,
    }


def _drawn(draw: random.Random) -> Arming | None:
    if draw.random() < 0.3:
        return None
    point = draw.choice(sorted(POINTS))
    times = 1 if POINTS[point].once else draw.choice((1, 1, 2, 3, 5, 8, 13))
    return Arming(point, times, draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0005, 0.02))))


def _request(draw: random.Random) -> SnapshotRequest:
    kind = draw.random()
    if kind < 0.25:
        return SnapshotRequest(table=TABLE, from_scratch=True)
    if kind < 0.5:
        return SnapshotRequest(table=TABLE)
    first, last = sorted(draw.randrange(2_000) for _ in range(2))
    return SnapshotRequest(table=TABLE, first=(str(first),), last=(str(last),))
