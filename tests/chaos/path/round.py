"""One round: the application writes for a set time while everything is disturbed; then the history is judged."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from consumers.operations import pauses
from consumers.operations.catalog import migration_class
from consumers.testing.settling import until_shown
from consumers.testing.waiting import until
from infra.kafka.topics import end_offsets
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.heartbeat import beat
from infra.state.positions import read_sources
from infra.state.snapshot_requests import SnapshotRequest, send_request
from schemas.errors import HeadraceError
from schemas.positions import Lsn
from tests.chaos import witness
from tests.chaos.path import checker, tables, topic
from tests.chaos.path.application import Application
from tests.chaos.path.faults import Faults, Happened
from tests.chaos.path.histories import BEGINNING, MIGRATIONS, Evidence, Pause
from tests.chaos.path.watch import Watch, committed
from tests.chaos.path.world import World

T = TypeVar("T")

_RATE: Final = 60.0
"""The application's transactions per second."""
_TICK: Final = 0.1
_OPERATOR_PAUSE: Final = (6.0, 18.0)
_FAREWELL_SECONDS: Final = 1.5
_REFUSED: Final = 3
_COPY_SECONDS: Final = 600.0
"""Maximum duration of the first snapshot, under all faults."""


@dataclass
class Story:
    """What happened in a round; `verdict` is what was broken, None if nothing was."""

    seed: int
    verdict: str | None
    faults: list[Happened]
    figures: dict[str, Any] = field(default_factory=dict)
    progress: list[tuple[float, int]] = field(default_factory=list)

    @property
    def tried(self) -> Counter[tuple[str, str]]:
        """Kind and role → how often."""
        return Counter((fault.kind, fault.role) for fault in self.faults)


class RefusedToContinue(AssertionError):
    """A process of headrace ended in a way that no fault explains."""


def play(world: World, disturb: Callable[[Watch], Faults], seed: int, seconds: float, *, rate: float = _RATE) -> Story:
    """Play a round in a world whose consumers have not been started yet; `disturb` is called once they have."""
    began = time.monotonic()
    application = Application(world.dsn, seed, rate=rate)
    watch = Watch(world)
    operator = _Operator(world, random.Random(f"{seed}/operator"))
    faults: Faults | None = None
    try:
        world.consume()
        faults = disturb(watch)
        faults.start()
        copied = _copied(world, faults, application, watch)
        application.change_forms()
        operator.start()
        while time.monotonic() < began + seconds and not watch.leads:
            time.sleep(_TICK)
            _check(world, faults, application)
        operator.stop()
        faults.stop()
        application.join()
        settled = _Settled(world, watch)
        settled.wait()
        wrote = time.monotonic() - began
        watch.stop()
        farewell = _Farewell(world, seed) if settled.stuck is None else None
        world.stop()
    finally:
        operator.stop()
        if faults is not None:
            with contextlib.suppress(Exception):
                faults.stop()
        application.stop()
        watch.stop()
    evidence = _evidence(world, application, watch, settled, copied, operator, farewell)
    figures = {
        **application.counts,
        "longest commit": round(application.longest_commit, 1),
        "events": len(evidence.events),
        "effects": len(evidence.effects),
        "rereads": operator.rereads,
        "pauses": len(operator.paused),
        "looks": watch.looks,
        "settled after": round(settled.seconds, 1),
        "seconds": round(wrote),
    }
    broken = [settled.stuck, checker.verdict(evidence)]
    verdict = "; ".join(text for text in broken if text is not None) or None
    return Story(seed, verdict, faults.happened, figures, watch.progress)


def _copied(world: World, faults: Faults, application: Application, watch: Watch) -> Lsn:
    """Wait until the first snapshot is complete, or a lead is broken; return a later WAL position."""

    def complete() -> bool:
        _check(world, faults, application)
        if watch.leads:
            return True
        with contextlib.suppress(HeadraceError):
            state = read_sources(world.settings).get("main")
            return state is not None and bool(state.snapshots) and all(one.done for one in state.snapshots.values())
        return False

    until(complete, "the first snapshot", _COPY_SECONDS, meanwhile=lambda: time.sleep(_TICK))
    return _asked(world, _wal_position)


def _wal_position(connection: psycopg.Connection[Any]) -> Lsn:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return Lsn(int(row[0]))


def _asked(world: World, question: Callable[[psycopg.Connection[Any]], T]) -> T:
    """Return the database's answer, retrying as often as needed."""
    while True:
        with contextlib.suppress(psycopg.Error), world.connect() as connection:
            return question(connection)
        time.sleep(_TICK)


def _check(world: World, faults: Faults, application: Application) -> None:
    faults.check()
    application.check()
    for service in world.services:
        for _, code, message in service.service.ends:
            if code == _REFUSED or "Traceback" in message:
                raise RefusedToContinue(f"{' '.join(service.service.arguments[:2])} ended with {code}: {message}")


class _Operator:
    """Pauses migrations and requests re-snapshots of the table from time to time."""

    def __init__(self, world: World, draw: random.Random) -> None:
        self.rereads = 0
        self.paused: list[Pause] = []
        self._world = world
        self._draw = draw
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and resume whatever was paused."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._draw.uniform(*_OPERATOR_PAUSE)):
            if self._draw.random() < 0.3:
                self.rereads += 1  # even without an answer: it may have been accepted
                with contextlib.suppress(psycopg.Error), self._world.connect() as connection:
                    send_request(connection, SnapshotRequest(table=f"public.{tables.TABLE}"))
            else:
                self._pause(self._draw.choice(MIGRATIONS))

    def _pause(self, name: str) -> None:
        set_paused = partial(
            pauses.set_paused, self._world.settings, migration_class(self._world.settings, name), "main"
        )
        since = quiet = math.inf  # without an answer, it may not be paused
        try:
            set_paused(True, 1.0)
            since = quiet = time.time()
        except pauses.StillUnderWay:
            since = time.time()
        except (psycopg.Error, HeadraceError):
            pass
        self._over.wait(self._draw.uniform(0.5, 3.0))
        self.paused.append(Pause(name, since, quiet, until=time.time()))
        _until_done(partial(set_paused, False))


def _until_done(act: Callable[[], None]) -> None:
    while True:
        with contextlib.suppress(psycopg.Error, HeadraceError):
            act()
            return
        time.sleep(_TICK)


class _Settled:
    """The state once nothing is disturbed any more and every write is published and applied."""

    def __init__(self, world: World, watch: Watch) -> None:
        self.lsn = Lsn(0)
        self.ends: dict[int, int] = {}
        self.ledger: dict[str, dict[int, int]] = {}
        self.committed: dict[str, dict[int, int]] = {}
        self.seconds = 0.0
        self.stuck: str | None = None
        self._world = world
        self._watch = watch

    def wait(self) -> None:
        """Return when nothing moves any more; on timeout, only what must never happen is judged."""
        began = time.monotonic()
        try:
            assert not self._watch.leads, "a lead is broken"
            until(self._world.is_synchronous, "the standby to be back")
            until(self._all_done, "every write to be published and applied")
            # Kafka's offsets follow the ledger asynchronously.
            until(self._offsets_follow, "Kafka's offsets to reach the ledger's")
        except AssertionError as error:
            self.stuck = str(error)
            self.lsn, self.ends, self.ledger, self.committed = BEGINNING, {}, {}, {}
        self.seconds = time.monotonic() - began

    def _all_done(self) -> bool:
        world = self._world
        with contextlib.suppress(HeadraceError, psycopg.Error), world.connect() as connection:
            self.lsn = beat(connection)
            if not self._published(self.lsn):
                return False
            until_shown(world.settings.kafka, world.topic)
            self.ends = end_offsets(world.settings.kafka, world.topic)
            self.ledger = tables.ledger(connection)
            return (
                all(self.ledger.get(name, {}) == self.ends for name in MIGRATIONS)
                and self._published(beat(connection))
                and end_offsets(world.settings.kafka, world.topic) == self.ends
            )
        return False

    def _published(self, lsn: Lsn) -> bool:
        for _ in range(100):
            state = read_sources(self._world.settings).get("main")
            if state is not None and state.stream is not None and state.stream.commit_lsn >= lsn:
                return not any(one.under_way for one in state.snapshots.values())
            time.sleep(_TICK)
        return False

    def _offsets_follow(self) -> bool:
        with contextlib.suppress(HeadraceError), self._watch.groups() as groups:
            self.committed = {name: committed(client, self._world.topic) for name, client in groups.items()}
        moved = {name: {part: at for part, at in self.ledger[name].items() if at} for name in MIGRATIONS}
        return self.committed == moved


class _Farewell:
    """Gives the gitlab schema to another database while the application writes.

    All consumers are frozen meanwhile, and come back as zombies; sooner if one holds the fence's lock, since a schema
    that is being written cannot be given away.
    """

    def __init__(self, world: World, seed: int) -> None:
        application = Application(world.dsn, seed + 1, rate=_RATE, label="farewell ")
        time.sleep(_FAREWELL_SECONDS)
        frozen = [consumer for name in MIGRATIONS for consumer in world.consumers(name)]
        for consumer in frozen:
            consumer.freeze()
        # Then they have work left.
        time.sleep(_FAREWELL_SECONDS)
        with world.connect() as connection:
            connection.execute("SET lock_timeout = '1s'")
            while (xid := self._given_away(connection)) is None:
                for consumer in frozen:
                    consumer.thaw()
        self.xid = xid
        time.sleep(_FAREWELL_SECONDS)
        for consumer in frozen:
            consumer.thaw()
        time.sleep(_FAREWELL_SECONDS)
        application.join()
        self.log = application.log

    def _given_away(self, connection: psycopg.Connection[Any]) -> int | None:
        """Return the transaction that gave it away; None if another session holds the lock."""
        with contextlib.suppress(psycopg.errors.LockNotAvailable), connection.transaction():
            exclude(connection, [ownership_key("gitlab_main")])
            connection.execute("INSERT INTO history.marks VALUES ('given away')")
            row = connection.execute(
                "UPDATE headrace.schema_ownership SET owner = 'elsewhere', epoch = epoch + 1"
                " WHERE gitlab_schema = 'gitlab_main' RETURNING pg_current_xact_id()::text::bigint"
            ).fetchone()
            assert row is not None
            return int(row[0])
        return None


def _evidence(
    world: World,
    application: Application,
    watch: Watch,
    settled: _Settled,
    copied: Lsn,
    operator: _Operator,
    farewell: _Farewell | None,
) -> Evidence:
    events = list(topic.events(world.settings, world.topic))
    with world.connect() as connection:
        seen = witness.read(connection)
        return Evidence(
            log=tables.writes(connection),
            commits=seen.commits,
            events=events,
            effects=tables.effects(connection),
            moves=seen.moves,
            transactions=application.log | (farewell.log if farewell else {}),
            found=tables.transactions(connection),
            settled=settled.lsn,
            given_away=seen.commits[farewell.xid] if farewell else None,
            copied=copied,
            rereads=operator.rereads + application.forms,
            ends=settled.ends,
            ledger=settled.ledger,
            committed=settled.committed,
            pauses=operator.paused,
            leads=watch.leads,
            reports=watch.reports,
        )
