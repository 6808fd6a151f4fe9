"""Consumers join, leave and are killed at random while the broker restarts and rows to change keep coming.

Afterwards a trigger's log and the ledger must show that each row was changed once.
"""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psycopg

from consumers.operations.status import gather
from consumers.testing.waiting import PATIENCE, until
from infra.settings.file import load_settings
from infra.stack import EmbeddedStack, Stack
from tests.consumers.container_repositories import (
    TABLE,
    TOO_MANY_TAGS,
    Feed,
    fill,
    start_impatient_member,
    write_settings,
)

_OTHERS = ("import_skipped", 5)
_ROWS_A_MOVE = 120
_BACKLOG = 3 * _ROWS_A_MOVE
"""The next move waits until at most this many events are left."""
_PACE: Mapping[str, Any] = {"batch_size": 60, "sub_batch_size": 4, "adaptive": False, "pause_ms": 5}
"""Small transactions, so that a consumer is always mid-work when it is stopped."""


class Crowd:
    """The running consumers, as processes; those stopped in order must have logged no error."""

    def __init__(self, config: Path, most: int) -> None:
        self.alive: list[subprocess.Popen[str]] = []
        self.counts = {"joined": 0, "left": 0, "killed": 0, "turned away": 0}
        self._config = config
        self._most = most

    def move(self, draw: random.Random) -> None:
        """Start, stop or kill one consumer."""
        kind = draw.random()
        if not self.alive or (kind < 0.6 and len(self.alive) < self._most):
            self.join()
        elif kind < 0.8:
            self.leave(self._pop_older(draw))
        else:
            self.kill(self._pop_older(draw))

    def _pop_older(self, draw: random.Random) -> subprocess.Popen[str]:
        """Remove and return a consumer that has had time to start."""
        return self.alive.pop(draw.randrange((len(self.alive) + 1) // 2))

    def tend(self) -> None:
        """Remove consumers that ended by themselves, and keep at least one running."""
        for member in [each for each in self.alive if each.poll() is not None]:
            self.alive.remove(member)
            self.leave(member)
        if not self.alive:
            self.join()

    def join(self) -> None:
        """Start a consumer."""
        self.alive.append(start_impatient_member(self._config))
        self.counts["joined"] += 1

    def leave(self, member: subprocess.Popen[str]) -> None:
        """Stop a consumer in order; one that found no broker at its start has ended by itself with an error."""
        member.send_signal(signal.SIGTERM)
        _, log = member.communicate(timeout=PATIENCE)
        if member.returncode == -signal.SIGTERM:  # it had not started working, or was ending by itself
            assert "Traceback" not in log, log
            self.counts["killed"] += 1
        elif member.returncode == 1 and "headrace: error: Kafka at" in log:
            self.counts["turned away"] += 1
        else:
            assert member.returncode == 0, log
            assert "Traceback" not in log, log
            self.counts["left"] += 1

    def kill(self, member: subprocess.Popen[str]) -> None:
        """Kill a consumer."""
        member.kill()
        member.communicate()
        self.counts["killed"] += 1

    def close(self) -> None:
        """Kill all consumers."""
        for member in self.alive:
            member.kill()
            member.communicate()


def play_round(stack: EmbeddedStack, directory: Path, seed: int) -> dict[str, Any]:
    """Play the long form: at most ten consumers, two broker restarts."""
    return play(stack, directory, seed, most=10, moves=60, restarts=2)


def play(stack: Stack, directory: Path, seed: int, *, most: int, moves: int, restarts: int) -> dict[str, Any]:
    """Play one round with at most `most` consumers; return a summary. Raises AssertionError on failure."""
    draw = random.Random(seed)
    name = f"m{seed}x{random.randrange(16**6):06x}"
    dsn = stack.postgres.create_database(name)
    config = write_settings(
        directory / f"{name}.toml",
        {
            "prefix": name,
            "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
            "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}},
            "migrations": {"skip_resets": {**_PACE, "continuous": True}},
        },
    )
    crowd = Crowd(config, most)
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLE.encode())
            feed = Feed(load_settings(config), partitions=most)
            due = {moves * (number + 1) // (restarts + 1) for number in range(restarts)}
            wanted = events = 0
            for number in range(moves):
                rows = {
                    key: TOO_MANY_TAGS if draw.random() < 0.7 else _OTHERS
                    for key in range(number * _ROWS_A_MOVE, (number + 1) * _ROWS_A_MOVE)
                }
                fill(connection, rows)
                feed.snapshot(rows)
                wanted += sum(row == TOO_MANY_TAGS for row in rows.values())
                events += len(rows)
                crowd.move(draw)
                if number in due:
                    _restart(stack, crowd, draw)
                _until_settled(connection, crowd, events - _BACKLOG)
            crowd.join()
            _until_settled(connection, crowd, events)
            until(lambda: _state(feed) == "caught_up", "the ledger to reach the topic's end")
            while crowd.alive:
                crowd.leave(crowd.alive.pop())
            _prove(connection, wanted, events)
        return {"seed": seed, **crowd.counts, "broker restarts": restarts, "changed": wanted, "events": events}
    finally:
        crowd.close()
        stack.kafka.start()  # a no-op unless a restart failed: other tests share this broker
        stack.postgres.drop_database(name)


def _restart(stack: Stack, crowd: Crowd, draw: random.Random) -> None:
    """Restart the broker, in order or by SIGKILL, while consumers come and go."""
    if draw.random() < 0.5:
        stack.kafka.kill()
    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(stack.kafka.restart)
        while not restarting.done():
            crowd.move(draw)
            wait([restarting], 0.2)
    restarting.result()


def _until_settled(connection: psycopg.Connection[Any], crowd: Crowd, events: int) -> None:
    def settled() -> bool:
        crowd.tend()
        return _settled(connection) >= events

    until(settled, f"the ledger to count {events} events")


def _settled(connection: psycopg.Connection[Any]) -> int:
    if connection.execute("SELECT to_regclass('headrace.progress')").fetchone() == (None,):
        return 0
    row = connection.execute(
        "SELECT coalesce(sum(applied + skipped + dead_letters), 0) FROM headrace.progress"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _state(feed: Feed) -> str:
    (status,) = [one for one in gather(feed.settings)["migrations"] if one["name"] == "skip_resets"]
    return str(status["state"])


def _prove(connection: psycopg.Connection[Any], wanted: int, events: int) -> None:
    """Fail unless each wanted row was changed once, and each event was counted once."""
    writes = connection.execute("SELECT id, old_state, new_state, application FROM writes").fetchall()
    assert len({key for key, *_ in writes}) == len(writes) == wanted, f"{len(writes)} writes for {wanted} rows"
    assert {tuple(rest) for _, *rest in writes} == {("import_skipped", "default", "headrace consume skip_resets")}
    left = connection.execute(
        "SELECT count(*) FROM container_repositories"
        " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2"
    ).fetchone()
    assert left == (0,)
    sums = connection.execute("SELECT sum(applied), sum(skipped), sum(dead_letters) FROM headrace.progress").fetchone()
    assert sums == (wanted, events - wanted, 0), sums
