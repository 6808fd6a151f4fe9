"""A producer on three brokers, one of which at a time is killed, frozen or restarted under a steady load.

Triggers keep a history of every row that a committed transaction changed. Afterwards the topic must have each change
once, in transaction order, at its own position, and nothing else: the end state alone could hide a change that a later
one overwrites. The producer must not have ended. The round prints what a reader saw meanwhile: latency, throughput,
and the longest gap.
"""

from __future__ import annotations

import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import TopicPartition
from rich.console import Console
from rich.table import Table

from consumers.testing.waiting import until
from infra.kafka import clients
from infra.settings.model import Settings
from infra.stack import Stack
from infra.stack.brokers.cluster import EmbeddedKafka
from schemas.events import Op
from schemas.topics import positions_topic
from tests.chaos.row_history import HISTORY, faults
from tests.clusters import all_in_sync, cluster, leader, transaction_coordinator
from tests.producers.folding import Decoders, Record, read_topic
from tests.producers.processes import SCHEMA, Process, Workload, producing, write_settings
from tests.producers.sources import Source, settings_for, topic_of

_TABLE: Final = "public.t"
_PARTITIONS: Final = 4
_CALM_SECONDS: Final = 3.0
_STALLS: Final = re.compile(r"^(?=.*Kafka kept the producer waiting).*\bseconds\W+([\d.]+)", re.MULTILINE)


@dataclass
class Phase:
    """What a reader saw during one event."""

    name: str
    began: float
    seconds: float = 0.0
    delays: list[float] = field(default_factory=list)
    """For each change that arrived: the time from its commit to the reader, in seconds."""
    gap: float = 0.0
    """The longest time without a change."""


class Reader:
    """Reads the topic as it grows, and times each change."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.phases: list[Phase] = []
        self.newest = 0.0
        """Commit time of the newest change read, in seconds since the epoch."""
        self.error: BaseException | None = None
        self._settings, self._topic = settings, topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="reader", daemon=True)
        self._thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Count what arrives inside the block towards a phase with that name."""
        phase = Phase(name, time.time())
        self.phases.append(phase)
        yield phase
        phase.seconds = time.time() - phase.began

    def past(self, moment: float) -> Callable[[], bool]:
        """Return a condition: a change committed after that moment has arrived."""

        def passed() -> bool:
            if self.error is not None:
                raise self.error
            return self.newest > moment

        return passed

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(120)
        if self.error is not None:
            raise self.error

    def _guarded(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self.error = error

    def _read(self) -> None:
        decoders = Decoders(self._settings)
        last = time.time()
        with clients.reading(self._settings.kafka) as client:
            client.assign([TopicPartition(self._topic, number, 0) for number in range(_PARTITIONS)])
            while not self._stop.is_set():
                for message in client.consume(500, 0.1):
                    if message.error() is not None:
                        continue
                    record = decoders.record(
                        message.partition() or 0, message.offset() or 0, message.key() or b"", message.value()
                    )
                    if record.event is None or record.event.op is Op.READ:
                        continue
                    now, committed = time.time(), record.event.source.ts_ms / 1000
                    self.newest = max(self.newest, committed)
                    if self.phases:
                        phase = self.phases[-1]
                        phase.delays.append(now - committed)
                        phase.gap = max(phase.gap, now - max(last, phase.began))
                    last = now


class World:
    """The cluster, the source with its load, and the reader."""

    def __init__(self, brokers: EmbeddedKafka, source: Source, process: Process, reader: Reader) -> None:
        self.brokers, self.source, self.process, self.reader = brokers, source, process, reader
        self.transactional_id = f"{source.settings.prefix}.main"

    def coordinator(self) -> int:
        """Return the broker that coordinates the producer's transactions."""
        return _there(lambda: transaction_coordinator(self.brokers, self.transactional_id))

    def leader(self) -> int:
        """Return the broker that leads the table's first partition."""
        return _there(lambda: leader(self.brokers, topic_of(self.source.settings, _TABLE)))

    def follower(self) -> int:
        """Return a broker that is not the coordinator, and preferably does not lead the positions topic."""
        others = [number for number in self.brokers.brokers if number != self.coordinator()]
        positions = leader(self.brokers, positions_topic(self.source.settings.prefix))
        return next((number for number in others if number != positions), others[0])

    def killed(self, number: int) -> None:
        """Kill a broker, wait until changes arrive without it, and start it again."""
        broker = self.brokers.brokers[number]
        broker.kill()
        self._wait_for_changes()
        broker.start()

    def frozen(self, number: int) -> None:
        """Freeze a broker, wait until changes arrive without it, and resume it."""
        broker = self.brokers.brokers[number]
        broker.freeze()
        try:
            self._wait_for_changes()
        finally:
            broker.thaw()

    def rolled(self) -> None:
        """Restart the brokers one after another, each when all are in sync."""
        for broker in self.brokers.brokers.values():
            broker.restart()
            until(lambda: all_in_sync(self.brokers), "all replicas to be in sync")

    def _wait_for_changes(self) -> None:
        until(self.reader.past(time.time()), "a change committed after the fault")
        self.process.check()


FAULTS: Final[dict[str, Callable[[World], None]]] = {
    "the transaction coordinator is killed": lambda world: world.killed(world.coordinator()),
    "a leader hangs": lambda world: world.frozen(world.leader()),
    "a leader is killed": lambda world: world.killed(world.leader()),
    "a follower hangs": lambda world: world.frozen(world.follower()),
    "the transaction coordinator hangs": lambda world: world.frozen(world.coordinator()),
    "a rolling restart": World.rolled,
}


def play_for(stack: Stack, directory: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Play the faults in random order, each at least once if time permits, and print what a reader saw."""
    draw = random.Random(seed)
    deadline = time.monotonic() + seconds

    def drawn() -> Iterator[str]:
        while True:
            yield from draw.sample(sorted(FAULTS), len(FAULTS))

    names = drawn()
    story, phases = play(stack, directory, seed, iter(lambda: time.monotonic() < deadline and next(names), False))
    Console(width=110).print(table(phases))
    return story


def play(stack: Stack, directory: Path, seed: int, names: Iterator[str | bool]) -> tuple[dict[str, Any], list[Phase]]:
    """Play the named faults; raises AssertionError if a change was lost, doubled or out of order."""
    prefix = f"b{seed}x{random.randrange(16**6):06x}"
    dsn = stack.postgres.create_database(prefix)
    try:
        with (
            tempfile.TemporaryDirectory(dir=directory, prefix=f"{prefix}-") as own,
            cluster() as brokers,
            psycopg.connect(dsn, autocommit=True) as connection,
        ):
            connection.execute(SCHEMA)
            settings = settings_for(brokers.bootstrap_servers, prefix, dsn, _TABLE, partitions=_PARTITIONS)
            source = Source(settings, connection)
            with producing(write_settings(settings, Path(own) / "headrace.toml")) as process:
                source.caught_up(process.check)
                connection.execute(HISTORY)
                reader = Reader(settings, topic_of(settings, _TABLE))
                world = World(brokers, source, process, reader)
                with Workload(dsn, seed, truncates=False, large=500) as work:
                    with reader.phase("nothing"):
                        time.sleep(_CALM_SECONDS)
                    for name in names:
                        with reader.phase(str(name)):
                            FAULTS[str(name)](world)
                        until(lambda: all_in_sync(brokers), "all replicas to be in sync")
                source.caught_up(process.check)
                reader.stop()
                stalls = [float(found) for found in _STALLS.findall(process.log.read_text())]
            records = read_topic(settings, topic_of(settings, _TABLE))
            _prove(source, records)
            story = {
                "transactions": work.transactions,
                "changes": sum(record.event is not None for record in records),
                "faults": len(reader.phases) - 1,
                "logged stalls": len(stalls),
                "longest": max(stalls, default=0.0),
            }
            return story, reader.phases
    finally:
        stack.postgres.drop_database(prefix)


def _prove(source: Source, records: list[Record]) -> None:
    found = list(faults(source.connection, records))
    assert not found, f"{len(found)} faults, for example: {'; '.join(found[:5])}"
    source.require_equal(_TABLE)


def table(phases: list[Phase]) -> Table:
    """Return what the reader saw, one row per phase."""
    shown = Table(title="From a change's commit to a reader of its topic, while one of three brokers …")
    shown.add_column("what happened")
    for column in ("seconds", "changes/s", "p50 ms", "p99 ms", "longest gap s"):
        shown.add_column(column, justify="right")
    for phase in phases:
        delays = sorted(phase.delays) or [float("nan")]
        shown.add_row(
            phase.name,
            f"{phase.seconds:.1f}",
            f"{len(phase.delays) / phase.seconds:.0f}",
            f"{1000 * delays[len(delays) // 2]:.0f}",
            f"{1000 * delays[len(delays) * 99 // 100]:.0f}",
            f"{phase.gap:.1f}",
        )
    return shown


def _there(ask: Callable[[], int | None]) -> int:
    found: list[int] = []

    def answered() -> bool:
        number = ask()
        if number is not None:
            found.append(number)
        return bool(found)

    until(answered, "a leader")
    return found[-1]
