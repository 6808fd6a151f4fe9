"""The world of one run of switchovers: servers on both sides, producers, consumers, an application, and the proof."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.kafka.topics import delete_topics
from infra.postgres.heartbeat import beat
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.positions import read_sources
from producers.source import slots
from schemas.topics import table_topic
from tests.chaos import both_sides
from tests.chaos.both_sides import CI, MAIN, SEC, SHARED, TABLES, VALUE, Writer
from tests.chaos.forked import Command, Service
from tests.chaos.server_pairs import Server, Template
from tests.chaos.tenures import Event, Fault, Write, find_faults, read_history
from tests.consumers.container_repositories import write_settings
from tests.producers.folding import read_topic, text

FIRST, SECOND, THIRD = "first", "second", "third"
_PATIENCE: Final = 180.0
"""Timeout in seconds for anything that has to happen."""
_LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Move:
    """Gitlab schemas that move from one database to another."""

    gitlab_schemas: tuple[str, ...]
    source: str
    destination: str


def changed(before: Mapping[str, Sight], after: Mapping[str, Sight], destination: str) -> list[str]:
    """Return the servers whose state differs, though no command was meant to change anything.

    The requests of a killed command may still take effect on its `destination`: a promotion, and a slot.
    """
    found = []
    for name, was in before.items():
        now = after.get(name, was)
        was_there, is_there = (
            (each.name, each.owners, frozenset() if name == destination else each.slots) for each in (was, now)
        )
        if not was.standby and (now.standby or was_there != is_there):
            found.append(f"{name}: {was} became {now}")
    return found


@dataclass(frozen=True, slots=True)
class Sight:
    """What a server reports about itself."""

    standby: bool
    name: str | None
    owners: Mapping[str, tuple[str, int]]
    slots: frozenset[str]

    def __repr__(self) -> str:
        owners = " ".join(f"{each}={owner}@{epoch}" for each, (owner, epoch) in sorted(self.owners.items()))
        return f"<{'standby' if self.standby else 'primary'} called {self.name}, {owners}, slots {sorted(self.slots)}>"


class World:
    """One run's world; `faults` collects what went wrong, `story` what happened."""

    def __init__(
        self, kafka_servers: str, template: Template, directory: Path, prefix: str, draw: random.Random
    ) -> None:
        self.prefix = prefix
        self.directory = directory
        self.template = template
        self.draw = draw
        self.faults: list[Fault] = []
        self.story: Counter[str] = Counter()
        self.moving: dict[str, tuple[str, ...]] = {}
        """Server → the gitlab schemas that move to it: the application tries to write them there from the start.

        The other schemas are tried on a server only once it has its own name: a promoted copy that is not opened yet
        has its origin's name, and accepts writes to the schemas that the origin keeps.
        """
        self.servers: dict[str, Server] = {}
        self.services: dict[str, Service] = {}
        self.outages: list[tuple[str, float, float]] = []
        """For each absence of a standby: the database it belongs to, its start and its end."""
        self.notes: list[str] = []
        self._began = time.monotonic()
        self._writers: dict[str, Writer] = {}
        self._histories: dict[str, list[Write]] = {}
        self._numbers: Counter[str] = Counter()
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True)
        self.servers[FIRST] = Server.primary(template, directory / FIRST)
        self.servers[SECOND] = Server.standby(self.servers[FIRST], directory / SECOND, fresh=True)
        database = {
            "gitlab_schemas": [MAIN, CI, SEC, SHARED],
            "tables": [f"public.{table}" for table in TABLES.values()],
            "table_schemas": {f"public.{table}": gitlab_schema for gitlab_schema, table in TABLES.items()},
        }
        self.config = write_settings(
            directory / "headrace.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": kafka_servers, "partitions": 2},
                "databases": {name: {"dsn": self.dsn(name), **database} for name in (FIRST, SECOND, THIRD)},
                # Consumption continues after completion: rows to reset keep coming.
                "migrations": {
                    "skip_resets": {"batch_size": 50, "sub_batch_size": 5, "pause_ms": 5, "continuous": True}
                },
            },
        )
        self.settings: Settings = load_settings(self.config)

    def dsn(self, name: str) -> str:
        return f"postgresql://postgres@/postgres?host={self.directory / name / 'socket'}"

    def start(self) -> None:
        """Start producers and consumers, and the application once the tables are copied."""
        for number, words in enumerate(
            (("produce", FIRST), ("produce", SECOND), ("consume", "skip_resets"), ("consume", "skip_resets", "--json"))
        ):
            self.serve(*words, number=number)
        self.require(self._copied, "the first snapshot to complete")
        for name in (FIRST, SECOND):
            self.write_on(name)

    def serve(self, *words: str, number: int = 0) -> None:
        """Run a command as a service."""
        self.services[f"{' '.join(words)} {number}"] = Service(self.logs, *words, "--config", str(self.config))

    def write_on(self, name: str) -> None:
        """Have the application try to write on the server that has this name now."""

        def may_try(connection: psycopg.Connection[Any]) -> Collection[str]:
            row = connection.execute("SELECT name FROM headrace.database").fetchone()
            return (*TABLES, SHARED) if row == (name,) else self.moving.get(server.incarnation, ())

        server = self.servers[name]
        seed = f"{self.draw.random()}"
        self._writers[server.incarnation] = Writer(server.incarnation, self.dsn(name), seed, may_try)

    def make_standby(self, name: str, primary: str) -> None:
        """Make the server a new standby of another; the previous server of that name is gone for good."""
        if (old := self.servers.get(name)) is not None:
            self._retire(old)
        self._numbers[name] += 1
        server = Server.standby(self.servers[primary], self.directory / name, self._numbers[name])
        self.servers[name] = server
        self.write_on(name)

    def command(self, *words: str, **environment: str) -> Command:
        """Start a command, with additions to its environment."""
        return Command(self.logs, (*words, "--config", str(self.config)), environment)

    def switchover(self, move: Move, *options: str, dsn: str | None = None) -> Command:
        """Start a switchover; with `dsn` its destination is reached there instead of at its own address."""
        words = ("switchover", *move.gitlab_schemas, "--from", move.source, "--to", move.destination, "--yes")
        variable = f"HEADRACE_DATABASES__{move.destination.upper()}__DSN"
        return self.command(*words, *options, **({variable: dsn} if dsn else {}))

    def ended(self, command: Command, what: str, seconds: float = _PATIENCE) -> int | None:
        """Return the exit code; a command that times out is a fault, and is killed."""
        code = command.wait(seconds)
        if code is None:
            self.fault("a command did not end", f"{what}: {command.message}")
            command.send(signal.SIGKILL)
            command.wait()
        elif "Traceback" in command.errors:
            self.fault("a traceback", f"{what}: {command.errors[-600:]}")
        self.note(f"  {' '.join(command.arguments[:-2])}: {code} {command.message}")
        return code

    def note(self, what: str) -> None:
        """Note what happens now, for the report of a fault."""
        self.notes.append(f"{time.monotonic() - self._began:6.1f} s ({time.time():.3f}) {what}")

    def fault(self, kind: str, what: str) -> None:
        self.note(f"FAULT {kind}")
        self.faults.append(Fault(kind, what))

    def look(self, *more: Server) -> dict[str, Sight]:
        """Return what every running server reports, by incarnation; for a standby only that it is one."""
        found = {}
        for server in (*self.servers.values(), *more):
            with contextlib.suppress(psycopg.OperationalError), server.connect() as connection:
                seen = sight(connection)
                # It replays what the primary did before, at its own pace.
                found[server.incarnation] = Sight(True, None, {}, frozenset()) if seen.standby else seen
        return found

    def sight(self, name: str) -> Sight:
        with self.servers[name].connect() as connection:
            return sight(connection)

    def until(self, condition: Callable[[], object], what: str, seconds: float = _PATIENCE) -> bool:
        """Wait for a condition; return whether it was met. A timeout is a fault."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                if condition():
                    return True
            if time.monotonic() > deadline:
                self.fault("timed out", what)
                return False
            time.sleep(_LOOK_SECONDS)

    def require(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition that the run depends on."""
        assert self.until(condition, what), f"timed out waiting for {what}"

    def owner(self, gitlab_schema: str) -> str | None:
        """Return the database in which the gitlab schema is open now."""
        for name in self.servers:
            with contextlib.suppress(psycopg.OperationalError):
                seen = self.sight(name)
                if not seen.standby and seen.name == name == seen.owners[gitlab_schema][0]:
                    return name
        return None

    def taken(self, gitlab_schema: str, name: str) -> int:
        """Return how many transactions of the application a server has accepted."""
        return self._writers[self.servers[name].incarnation].taken[gitlab_schema]

    def wait_for_writes(self) -> None:
        """Wait until the application has written to every gitlab schema at its owner."""
        for gitlab_schema in TABLES:
            name = self.owner(gitlab_schema)
            if name is not None:
                enough = self.taken(gitlab_schema, name) + 5
                took = partial(self._took, gitlab_schema, name, enough)
                self.until(took, f"{name} to accept writes to {gitlab_schema}")

    def _took(self, gitlab_schema: str, name: str, enough: int) -> bool:
        return self.taken(gitlab_schema, name) >= enough

    def given_up(self, name: str) -> bool:
        """Whether a database's producer has published everything up to the handover."""
        state = read_sources(self.settings).get(name)
        return state is not None and all(
            (given := state.handovers.get(gitlab_schema)) is not None and given.epoch == epoch
            for gitlab_schema, (owner, epoch) in self.sight(name).owners.items()
            if gitlab_schema in TABLES and owner != name
        )

    def require_slot(self, name: str) -> None:
        """Note a fault if the slot of a new owner's producer would not survive the next failover."""
        with self.servers[name].connect() as connection:
            state = slots.read(connection, f"{self.prefix}_{name}")
        if state is None:
            self.fault("no slot", f"{name} has no slot for its producer")
        elif self.template.synchronizes_slots and not state.failover:
            self.fault("a slot without failover", f"{state.slot} of {name}")

    def settle(self) -> None:
        """Stop the application, and wait until everything is published and the migration has applied it."""
        for writer in self._writers.values():
            writer.stop()
        owners = {gitlab_schema: self.owner(gitlab_schema) for gitlab_schema in TABLES}
        for gitlab_schema, name in owners.items():
            if name is None:
                self.fault("no owner", f"{gitlab_schema} is open on no server: {self.look()}")
        publishers = sorted({name for name in owners.values() if name is not None})
        # Twice: the migration's last changes are changes like any other, made after the position waited for.
        for _ in range(2):
            if not all(list(map(self._until_published, publishers))):
                return
            if owners[MAIN] is not None and not self.until(
                lambda: not self._wanted(str(owners[MAIN])), "the migration to apply everything"
            ):
                return

    def clean_up(self) -> None:
        """Note a fault where `cleanup` leaves migration records of another owner, or removes those in use."""
        owner = self.owner(MAIN)
        for name in self.servers:
            command = self.command("cleanup", name, "--yes", "--json")
            if self.ended(command, f"cleanup {name}") != 0:
                self.fault("cleanup failed", f"{name}: {command.message}")
                continue
            with self.servers[name].connect() as connection:
                left = connection.execute("SELECT 1 FROM headrace.migrations WHERE name = 'skip_resets'").fetchone()
            if (left is not None) != (name == owner):
                self.fault("a wrong cleanup", f"{name}, where {owner} owns it: {left}, {command.output}")

    def judge(self) -> list[Fault]:
        """Return every fault, noted on the way or found in the history."""
        for server in self.servers.values():
            if server.incarnation not in self._histories:
                self._harvest(server)
        topics = {table: self._events(gitlab_schema, table) for gitlab_schema, table in TABLES.items()}
        self.faults += find_faults(self._histories, topics, both_sides.filled())
        self.faults += self._ended_by_an_outage()
        self.story["writes"] = sum(sum(writer.taken.values()) for writer in self._writers.values())
        return self.faults

    def close(self) -> None:
        """Stop everything that runs."""
        for writer in self._writers.values():
            with contextlib.suppress(BaseException):
                writer.stop()
        for service in self.services.values():
            service.kill()
            service.stop()
        for server in self.servers.values():
            server.stop(signal.SIGQUIT)
        names = clients.admin(self.settings.kafka).list_topics(timeout=120).topics
        delete_topics(self.settings.kafka, [name for name in names if name.startswith(f"{self.prefix}.")])

    def _retire(self, server: Server) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            self._harvest(server)
        if (writer := self._writers.get(server.incarnation)) is not None:
            writer.stop()
            self._harvest(server)
        server.stop()

    def _harvest(self, server: Server) -> None:
        with server.connect() as connection:
            self._histories[server.incarnation] = read_history(connection)

    def _copied(self) -> bool:
        state = read_sources(self.settings).get(FIRST)
        return (
            state is not None and len(state.snapshots) == len(TABLES) and all(s.done for s in state.snapshots.values())
        )

    def _until_published(self, name: str) -> bool:
        with self.servers[name].connect() as connection:
            lsn = beat(connection)

        def published() -> bool:
            state = read_sources(self.settings).get(name)
            return state is not None and state.stream is not None and state.stream.commit_lsn >= lsn

        return self.until(published, f"{name} to publish up to {lsn}{self._last_word('produce', name)}")

    def _last_word(self, *words: str) -> str:
        """Return a service's last message, for a fault."""
        service = next((each for each in self.services.values() if each.arguments[:2] == words), None)
        return f": {service.ends[-1][1:]}" if service is not None and service.ends else ""

    def _wanted(self, name: str) -> bool:
        with self.servers[name].connect() as connection:
            row = connection.execute(
                "SELECT 1 FROM container_repositories"
                " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2 LIMIT 1"
            ).fetchone()
        return row is not None

    def _events(self, gitlab_schema: str, table: str) -> Mapping[int, list[Event]]:
        topic = table_topic(self.prefix, gitlab_schema, FIRST, "public", table)
        found: dict[int, list[Event]] = defaultdict(list)
        for record in read_topic(self.settings, topic):
            if record.event is None:
                continue
            after = record.event.after
            value = None if after is None else "/".join(text(after[column]) or "" for column in VALUE[gitlab_schema])
            key = record.key["id"]
            assert isinstance(key, int)
            found[key].append(Event(str(record.event.op), value))
        return found

    def _ended_by_an_outage(self) -> Iterator[Fault]:
        for name, since, until in self.outages:
            for service in self.services.values():
                if service.arguments[:2] != ("produce", name):
                    continue
                for at, code, message in service.ends:
                    left = "has given every captured table" in message
                    if since <= at <= until and code is not None and code > 0 and not left:
                        yield Fault("a producer ended while a standby was away", f"{name} with {code}: {message}")


def sight(connection: psycopg.Connection[Any]) -> Sight:
    """Return what the connection's server reports about itself."""
    row = connection.execute(
        "SELECT pg_is_in_recovery(), (SELECT name FROM headrace.database),"
        " (SELECT jsonb_object_agg(gitlab_schema, jsonb_build_array(owner, epoch)) FROM headrace.schema_ownership),"
        " (SELECT coalesce(jsonb_agg(slot_name), '[]') FROM pg_replication_slots s"
        "   WHERE slot_type = 'logical' AND NOT temporary AND to_jsonb(s) ->> 'synced' IS DISTINCT FROM 'true')"
    ).fetchone()
    assert row is not None
    owners = {gitlab_schema: (owner, int(epoch)) for gitlab_schema, (owner, epoch) in row[2].items()}
    return Sight(bool(row[0]), row[1], owners, frozenset(row[3]))
