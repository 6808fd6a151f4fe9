"""Events that arrive before their rows are visible: a synchronous standby comes and goes while everything is killed.

The end state could hide a row that was repaired meanwhile, so the database keeps a history of each write and each
ledger move, with their transactions. A row that has to be changed has exactly one event that wants it; it is changed
once, by the transaction that moves the ledger past that event; and `headrace status` never reports caught up while an
event before the topic's end is pending.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import TopicPartition

from consumers.operations.status import gather
from consumers.testing.settling import until_shown
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.kafka.topics import end_offsets
from infra.postgres.heartbeat import beat
from infra.schema_registry.topic_registry import open_registry
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack import EmbeddedStack
from infra.state.positions import read_sources
from schemas.codec.projection import projection
from schemas.errors import HeadraceError
from schemas.events import ChangeEvent
from schemas.topics import group_name, table_topic
from schemas.wire import HEADER_BYTES, split_wire
from tests.chaos import witness
from tests.chaos.history import HISTORY, Effect, Event, Fault, History, Poll, find_faults
from tests.chaos.standbys import ComingAndGoing
from tests.chaos.writing import REPOSITORIES, STATUSES, Row, Writers
from tests.consumers import container_repositories, registry
from tests.consumers.services import ROOT, Service, run

RATE: Final = 500.0
"""Rows that the application writes per second."""
_SECONDS_A_KILL: Final = 28.0
_FEWEST_KILLS: Final = 3
_POLL_SECONDS: Final = 0.4
_EARLY_SECONDS: Final = 0.5
_REBALANCE_SECONDS: Final = 20.0
_VISITED_SECONDS: Final = 60.0
"""Minimum length of a round that includes rebalances, which take time."""
_RESUMED_SECONDS: Final = 4.0
"""How long the standby stays away after a resume: consumers read on before its commits are visible."""
_FIRST_ROWS: Final = 2_000

_MIGRATIONS: Final = {"skip_resets": ("gitlab_main", REPOSITORIES), "status_backfills": ("registry", STATUSES)}
_STATES: Final = {
    "skip_resets": ("import_skipped/2", "default/"),
    "status_backfills": ("", "native"),
}
"""The value of a row that has to be changed, and its value afterwards."""
_COLUMNS: Final = {REPOSITORIES: ("migration_state", "migration_skipped_reason"), STATUSES: ("migration_status",)}
_WANTED: Final = {REPOSITORIES: container_repositories.TOO_MANY_TAGS, STATUSES: (None,)}
"""The event's values for a row that has to be changed, and their columns."""
_FINISHED: Final = ("caught_up", "complete")

_PRODUCE: Final = ("produce", "main")
_SERVICES: Final = (
    _PRODUCE,
    ("consume", "skip_resets"),
    ("consume", "skip_resets", "--json"),
    ("consume", "status_backfills"),
)


def play_for(stack: EmbeddedStack, directory: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Play one round in which the application writes for the given time; return a summary.

    Raises AssertionError if a promise was broken.
    """
    draw = random.Random(seed)
    world = World(stack, directory, f"v{seed}x{draw.randrange(16**6):06x}", draw)
    try:
        return {"seed": seed, **world.play(seed, draw, seconds)}
    except BaseException:
        for log in sorted(directory.glob(f"{world.name}-*.log")):
            print(f"--- {log.name}", *log.read_text().splitlines()[-6:], sep="\n", file=sys.stderr)
        raise
    finally:
        world.close()


class World:
    """One round: a database with its standby, the services, and observations of them."""

    def __init__(self, stack: EmbeddedStack, directory: Path, name: str, draw: random.Random) -> None:
        self.name = name
        self.stack = stack
        self.directory = directory
        self.dsn = stack.postgres.create_database(name)
        self.services: dict[tuple[str, ...], Service] = {}
        self.polls: list[Poll] = []
        self.unanswered = 0
        self.kills = {"producer": 0, "consumers": 0}
        self._over = threading.Event()
        with self.connect() as connection:
            connection.execute(container_repositories.TABLE.partition("CREATE TABLE public.writes")[0].encode())
            connection.execute((registry.TABLE + registry.EXPANDED).encode())
            connection.execute(HISTORY.encode())
            witness.begin(connection)
            self._first = _fill(connection)
        self.pauses = 0
        self.standby = ComingAndGoing(stack, name, random.Random(draw.random()), self._rebalance_in_a_pause)
        self.config = container_repositories.write_settings(
            directory / f"{name}.toml",
            {
                "prefix": name,
                "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
                "databases": {
                    "main": {
                        "dsn": self.dsn,
                        "gitlab_schemas": ["gitlab_main", "registry"],
                        "tables": [f"public.{REPOSITORIES}", f"public.{STATUSES}"],
                        "table_schemas": {f"public.{STATUSES}": "registry"},
                        "snapshot": {"chunk_rows": 100},
                    }
                },
                # The table's autovacuum must not throttle here.
                "migrations": {
                    "skip_resets": {"continuous": True, "health": {"autovacuum": False}},
                    "status_backfills": {"health": {"autovacuum": False}},
                },
            },
        )
        self.settings: Settings = load_settings(self.config)

    @contextlib.contextmanager
    def connect(self) -> Iterator[psycopg.Connection[Any]]:
        options = "-c synchronous_commit=local"
        with psycopg.connect(self.dsn, autocommit=True, application_name="test", options=options) as connection:
            yield connection

    def close(self) -> None:
        self._over.set()
        for service in self.services.values():
            service.kill()
            service.stop()
        self.standby.close()
        self.stack.postgres.drop_database(self.name)

    def play(self, seed: int, draw: random.Random, seconds: float) -> dict[str, Any]:
        self._serve(_PRODUCE)
        with self.connect() as connection:
            until(lambda: _there(connection, "headrace.progress"), "the ledger to exist")
            witness.follow_ledger(connection)
        for arguments in _SERVICES:
            self._serve(arguments)
        until(self._published_first, "the first rows to be published")
        polling = threading.Thread(target=self._poll, daemon=True)
        polling.start()
        began = time.monotonic()
        writers = Writers(self.dsn, seed, self.standby.quiet, rate=RATE)
        self.standby.start(visits=seconds >= _VISITED_SECONDS)
        try:
            kills = max(_FEWEST_KILLS, round(seconds / _SECONDS_A_KILL))
            for number in range(kills):
                moment = began + seconds * (number + draw.uniform(0.3, 0.9)) / kills
                while time.monotonic() < moment:
                    time.sleep(0.1)
                    writers.check()
                    self._check()
                self._kill(_PRODUCE if number % 2 else draw.choice(_SERVICES[1:]))
            time.sleep(max(0.0, began + seconds - time.monotonic()))
        finally:
            self.standby.quiet.clear()
            writers.stop()
        wrote = time.monotonic() - began
        self.standby.settle()
        self._settle()
        self._over.set()
        polling.join()
        assert self._command_says() == dict.fromkeys(_MIGRATIONS, "caught_up")
        for service in self.services.values():
            service.stop()
        self._check()
        return {
            "writes": writers.writes,
            "a second": round(writers.writes / wrote),
            "longest commit": round(writers.longest_commit, 1),
            "outages": self.standby.outages,
            "rebalances in a pause": self.pauses,
            "kills": self.kills,
            "status polls": len(self.polls) // len(_MIGRATIONS),
            "unanswered": self.unanswered,
            **self._prove({**self._first, **writers.wanted}, writers.others),
        }

    def _rebalance_in_a_pause(self) -> None:
        """Pause a migration, have a consumer join its group and leave again, and resume; all during an outage.

        A consumer whose partitions wait for a transaction loses some of them, and regains them, while it waits.
        """
        self._command("pause", "skip_resets")
        with (self.directory / f"{self.name}-joining.log").open("a") as log:
            joining = run(log, "consume", "skip_resets", "--config", str(self.config))
        try:
            # A consumer that was just killed delays the rebalance until the group drops it: then this is only a pause.
            joined = _within(_REBALANCE_SECONDS, lambda: self._share_all(3))
        finally:
            joining.terminate()
            joining.wait(PATIENCE)
        self.pauses += joined and _within(_REBALANCE_SECONDS, lambda: self._share_all(2))
        self._command("resume", "skip_resets")
        time.sleep(_RESUMED_SECONDS)

    def _share_all(self, number: int) -> bool:
        """Whether `number` consumers share the partitions, each with at least one."""
        group = group_name(self.settings.prefix, "skip_resets")
        client = clients.admin(self.settings.kafka)
        members = client.describe_consumer_groups([group])[group].result(PATIENCE).members
        shares = [len(member.assignment.topic_partitions) for member in members]
        return len(shares) == number and all(shares) and sum(shares) == self.settings.kafka.partitions

    def _command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "headrace", *arguments, "--config", str(self.config)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _serve(self, arguments: tuple[str, ...]) -> None:
        if arguments not in self.services:
            log = self.directory / f"{self.name}-{'-'.join(arguments)}.log"
            self.services[arguments] = Service(log, *arguments, "--config", str(self.config))

    def _check(self) -> None:
        """Fail if a service ended without being killed or stopped, or if the standby's thread failed."""
        for arguments, service in self.services.items():
            assert {*service.codes} <= {-15, -9, 0}, f"{' '.join(arguments)} ended by itself: {service.codes}"
        if self.standby.error is not None:
            raise self.standby.error

    def _kill(self, arguments: tuple[str, ...]) -> None:
        self.services[arguments].kill()
        self.kills["producer" if arguments == _PRODUCE else "consumers"] += 1

    def _published_first(self) -> bool:
        state = read_sources(self.settings).get("main")
        return state is not None and bool(state.snapshots) and all(each.done for each in state.snapshots.values())

    def _poll(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            try:
                document = gather(self.settings)
            except HeadraceError:
                self.unanswered += 1
                continue
            now = time.time()
            for one in document["migrations"]:
                if one["name"] in _MIGRATIONS:
                    ends = {each["partition"]: each["end_offset"] for each in one["partitions"]}
                    self.polls.append(Poll(one["name"], one["state"], ends, now))

    def _settle(self) -> None:
        """Wait until every write is published, and status reports each migration as caught up."""
        with self.connect() as connection:
            lsn = beat(connection)

        def published() -> bool:
            self._check()
            state = read_sources(self.settings).get("main")
            return state is not None and state.stream is not None and state.stream.commit_lsn >= lsn

        until(published, "everything to be published")
        since = time.time()

        def caught_up() -> bool:
            self._check()
            late = [poll for poll in self.polls[-8:] if poll.ended > since + 1]
            return {poll.migration for poll in late if poll.state == "caught_up"} == _MIGRATIONS.keys()

        until(caught_up, "status to report both migrations as caught up")

    def _command_says(self) -> dict[str, str]:
        migrations = json.loads(self._command("status", "--json"))["migrations"]
        return {one["name"]: one["state"] for one in migrations if one["name"] in _MIGRATIONS}

    def _prove(self, wanted: Mapping[Row, float], others: set[Row]) -> dict[str, Any]:
        with self.connect() as connection:
            history = History(connection)
        known = (wanted.keys() - self._first.keys()) | others
        assert known <= history.logged <= known | self._first.keys(), "the application's log and the history differ"
        effects: list[Effect] = []
        faults: list[Fault] = []
        waits: list[float] = []
        early = 0
        for migration, (gitlab_schema, table) in _MIGRATIONS.items():
            keys = {key: visible for (relation, key), visible in wanted.items() if relation == table}
            topic = table_topic(self.name, gitlab_schema, "main", "public", table)
            events = _wanting(self.settings, topic, table)
            done, moves = history.effects[table], history.moves[migration]
            reports = [poll for poll in self.polls if poll.migration == migration and poll.state in _FINISHED]
            faults += find_faults(keys.keys(), _STATES[migration], events, done, moves, reports)
            effects += [effect for each in done.values() for effect in each]
            early += sum(events[key][0].seen < visible - _EARLY_SECONDS for key, visible in keys.items() if events[key])
            waits += [done[key][0].at - events[key][0].committed for key in keys if done[key] and events[key]]
        waits.sort()
        figures = {
            "wanted": len(wanted),
            "effects": len(effects),
            "early": early,
            "wait p50": round(waits[len(waits) // 2], 3),
            "wait p99": round(waits[len(waits) * 99 // 100], 1),
            "longest wait": round(waits[-1], 1),
            "reported caught up": sum(poll.state in _FINISHED for poll in self.polls),
        }
        kinds = dict(Counter(fault.kind for fault in faults))
        assert not faults, (
            f"{kinds}, for example: {'; '.join(f'{each.kind}: {each.what}' for each in faults[:3])}; {figures}"
        )
        assert early, "no event came before its row was visible: nothing was tested"
        return figures


def _wanting(settings: Settings, topic: str, table: str) -> dict[int, list[Event]]:
    """Return key → the events after which its row has to be changed.

    None of them is compacted away yet: Kafka does not compact a partition's active segment.
    """
    until_shown(settings.kafka, topic)
    schemas = open_registry(settings)
    read: dict[bytes, Callable[[bytes], ChangeEvent]] = {}
    events: dict[int, list[Event]] = defaultdict(list)
    left = {partition for partition, end in end_offsets(settings.kafka, topic).items() if end}
    with clients.reading(settings.kafka, enable_partition_eof=True, fetch_wait_max_ms=10) as client:
        clients.assign(client, [TopicPartition(topic, partition, 0) for partition in left])
        while left:
            for message in client.consume(10_000, 1.0):
                partition, value = message.partition(), message.value()
                assert partition is not None
                if message.error() is not None:
                    left.discard(partition)  # the end of the partition
                    continue
                if value is None:
                    continue
                if value[:HEADER_BYTES] not in read:
                    schema_id, _ = split_wire(value)
                    read[value[:HEADER_BYTES]] = projection(schemas.schema(schema_id), ("id", *_COLUMNS[table]))
                event = read[value[:HEADER_BYTES]](value)
                if event.after is not None and tuple(event.after[name] for name in _COLUMNS[table]) == _WANTED[table]:
                    key = event.after["id"]
                    assert isinstance(key, int)
                    committed, seen = event.source.ts_ms / 1000, event.ts_ms / 1000
                    events[key].append(Event(partition, message.offset() or 0, committed, seen))
    return events


def _fill(connection: psycopg.Connection[Any]) -> dict[Row, float]:
    """Insert the rows for the snapshot, a third of which has to be changed; return those."""
    rows = {
        key: container_repositories.TOO_MANY_TAGS if key % 3 == 0 else container_repositories.DEFAULT
        for key in range(1, _FIRST_ROWS + 1)
    }
    container_repositories.fill(connection, rows)
    now = time.time()
    return {(REPOSITORIES, key): now for key, row in rows.items() if row == container_repositories.TOO_MANY_TAGS}


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return done


def _there(connection: psycopg.Connection[Any], table: str) -> bool:
    return connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() != (None,)
