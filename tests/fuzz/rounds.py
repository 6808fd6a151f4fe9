"""Plays a script on real servers, and reports what broke: a topic that differs from its table, or a wrong stop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from infra.kafka.topics import delete_topics
from infra.postgres.connect import connect
from infra.settings.model import Settings
from infra.state.positions import SnapshotState, read_sources
from producers.source.slots import slot_name
from schemas.positions import Lsn, parse_lsn
from schemas.topics import positions_topic
from tests.fuzz.acts import BEGIN, CATCH_UP, KILL, PASS, RESTART, START, STOP, Act
from tests.fuzz.application import Application
from tests.fuzz.operator import Operator
from tests.fuzz.producing import Producer
from tests.fuzz.recorded import Recorded
from tests.fuzz.script import Script
from tests.fuzz.source_changes import TWO_PHASE
from tests.fuzz.topics import INCOMPLETE, compared
from tests.fuzz.world import Broken, World
from tests.producers.folding import Record, read_topics
from tests.producers.sources import settings_for

_SETTLES: Final = 20.0
_LOOKS: Final = 10
"""Seconds and catch-ups after which a table has to be equal or stopped."""

_HURRY_SECONDS: Final = 0.5


@dataclass
class Outcome:
    """The result of a round that broke nothing."""

    equal: dict[str, int] = field(default_factory=dict)
    """Tables equal to their topics at the end → rows."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Tables that were stopped when everything was done → the reason, whatever their remedies achieved."""
    still: dict[str, str] = field(default_factory=dict)
    """Tables that are still stopped after their remedies."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Tables that can no longer be captured."""
    refusals: list[str] = field(default_factory=list)
    """Reasons for which starts were refused, before their remedies."""


def play(world: World, script: Script) -> Outcome:
    """Play a round; raises Broken."""
    name = f"f{script.seed}_{time.monotonic_ns() % 10**9}"
    dsn = world.database(name, script.encoding)
    settings = settings_for(
        world.bootstrap_servers,
        name,
        # Large transactions are streamed before their commit.
        make_conninfo(world.owners_dsn(dsn) if script.owned else dsn, options="-c logical_decoding_work_mem=64kB"),
        *script.tables,
        snapshot={"chunk_rows": script.chunk_rows},
        allow_unlimited_wal=True,
        spill_directory=world.directory / name,
    )
    played = Round(world, script, settings, dsn)
    try:
        return played.play()
    except Broken as error:
        raise Broken(f"{error}\n{played.tail()}") from error
    finally:
        played.close()
        world.server.drop_database(name)
        with contextlib.suppress(Exception):
            states = read_sources(settings)
            topics = {each.topic for state in states.values() for each in state.snapshots.values()}
            delete_topics(settings.kafka, [*topics, positions_topic(name), f"{name}.schemas"])


class Round:
    """A round in progress."""

    def __init__(self, world: World, script: Script, settings: Settings, dsn: str) -> None:
        self.world, self.script = world, script
        self._application = Application(dsn, settings.prefix, owned=script.owned)
        self._operator = Operator(settings, self._application.alter, self._application.happened)
        self._producer: Producer | None = None
        self._positions = Recorded(settings.prefix, settings.kafka)
        self._log = world.directory / f"{settings.prefix}.log"
        self._slot = slot_name(settings, "main", settings.database("main"))
        self._completed: set[str] = set()
        """Tables that were re-snapshotted for values that the stream omitted."""
        self.outcome = Outcome()

    @property
    def settings(self) -> Settings:
        return self._operator.settings

    def close(self) -> None:
        if self._producer is not None:
            self._producer.kill()
        self._positions.close()
        self._application.close()
        for path in (self._log, self._log.with_suffix(".end")):
            path.unlink(missing_ok=True)

    def play(self) -> Outcome:
        for act in self.script.first:
            self._carry_out(act)
        if refused := [each for each in self._application.failed if "CREATE TABLE" in each]:
            raise Broken(f"the fuzz drew an impossible table: {refused}")
        self._application.configure(self.script.settings, self.script.role_settings)
        for act in self.script.acts:
            self._carry_out(act)
        self._application.finish_prepared()
        self._carry_out(START)
        self._catch_up()
        self._prove(frozenset())
        self.outcome.stopped = dict(self.outcome.still)
        if self.outcome.still:
            self._follow_remedies()
        for table in self._operator.tables:
            schema, _, name = table.partition(".")
            self._application.require_writable((schema, name))
        if self.script.checked and not self.outcome.still and (found := self._operator.checked()):
            raise Broken(f"every topic equals its table, but `headrace check` reports: {found}")
        self._carry_out(STOP)
        self.outcome.refusals, self.outcome.left_out = self._operator.refusals, self._operator.left_out
        return self.outcome

    def _carry_out(self, act: Act) -> None:
        if act == START and self._producer is None:
            self._start()
        elif act == STOP and self._producer is not None:
            if not self._producer.stop(self.world.patience):
                raise Broken("the producer did not stop")
            self._end_producer()
        elif act == KILL and self._producer is not None:
            self._end_producer()
        elif act == RESTART and self._producer is not None:
            self._end_producer()
            self._start()
        elif act == TWO_PHASE:
            self._make_slot_two_phase()
        elif act in (CATCH_UP, PASS) and self._producer is not None:
            self._catch_up(copied=act == CATCH_UP)
        elif act == BEGIN and self._producer is not None:
            self._until_it_reads(self._producer)
        elif act.what == "re-snapshot it" and act.table is not None:
            self._application.request(act.table)
        elif act.statements:
            self._application.write(act)

    def _start(self) -> None:
        self._producer = Producer(
            self.settings, self._log, python_codec=self.script.python_codec, plant=self.world.plant
        )

    def _until_it_reads(self, producer: Producer) -> None:
        """Wait until the producer reads, or has ended, which a later act handles."""
        self._application.finish_prepared()  # a first start waits for prepared transactions
        deadline = time.monotonic() + self.world.patience
        while not producer.reads and producer.ended is None:
            if time.monotonic() > deadline:
                raise Broken(f"the producer did not start reading; {self.tail()}")
            time.sleep(0.02)

    def _end_producer(self) -> None:
        """Kill the producer; if it was refused before, follow its remedy."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        ended = producer.ended
        producer.kill()
        if ended is not None and not ended.in_order:
            self._operator.follow(ended)

    def _make_slot_two_phase(self) -> None:
        running = self._producer is not None
        self._end_producer()
        self._application.finish_prepared()  # a slot's creation waits for prepared transactions
        deadline = time.monotonic() + self.world.patience
        drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        while self._application.ask("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", self._slot):
            self._application.ask(f"{drop} WHERE slot_name = %s AND active_pid IS NULL", self._slot)
            if time.monotonic() > deadline:
                raise Broken(f"slot {self._slot} is still active")
            time.sleep(0.02)
        made = "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput', false, true)"
        self._application.ask(made, self._slot)
        self._application.happened.append(TWO_PHASE)
        if running:
            self._start()

    def _catch_up(self, *, copied: bool = True) -> None:
        """Wait until all writes are published and, with `copied`, all tables are copied."""
        # The producer's next heartbeat is after everything that was written.
        lsn = parse_lsn(self._application.ask("SELECT pg_current_wal_insert_lsn()::text"))
        deadline = time.monotonic() + self.world.patience
        self._application.finish_prepared()  # a first start waits for prepared transactions
        pause = 0.02
        hurried = 0.0
        while not self._there(lsn, copied=copied):
            if self._producer is not None and time.monotonic() > hurried + _HURRY_SECONDS:
                self._producer.hurry()
                hurried = time.monotonic()
            if self._producer is not None and (ended := self._producer.ended) is not None:
                if ended.in_order:
                    raise Broken("the producer ended by itself")
                self._end_producer()
                self._start()
                pause = 0.02
            if time.monotonic() > deadline:
                raise Broken(f"the producer did not catch up; {self.tail()}")
            time.sleep(pause := min(0.2, 1.5 * pause))

    def _there(self, lsn: Lsn, *, copied: bool) -> bool:
        # The slot is queried first, which is cheaper: it is confirmed after the position is recorded.
        found = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s"
        confirmed = self._application.ask(found, self._slot)
        if confirmed is None or parse_lsn(confirmed) < lsn:
            return False
        state = self._positions.sources().get("main")
        if state is None or state.stream is None or state.stream.commit_lsn < lsn:
            return False
        return not copied or all(each.stopped or not each.under_way for each in state.snapshots.values())

    def _prove(self, repaired: frozenset[str]) -> None:
        """Raise Broken unless each topic equals its table, or the table is stopped for a justified reason.

        Those that were `repaired` have to be equal.
        """
        self.outcome.still.clear()
        with connect(self._application.dsn, name="fuzz", reading=True) as connection:
            left = dict.fromkeys(self._operator.tables, "")
            deadline = time.monotonic() + _SETTLES
            for looks in count(1):
                left = self._judged(connection, [table for table in left if table in self._operator.tables], repaired)
                if not left:
                    return
                if time.monotonic() > deadline and looks >= _LOOKS:
                    raise Broken("; ".join(f"{table}: {how}" for table, how in left.items()))
                time.sleep(0.3)
                self._catch_up()

    def _follow_remedies(self) -> None:
        """Follow the remedies of stopped tables; each is then equal, unless it could not be repaired."""
        repaired = {
            table for table, reason in self.outcome.still.items() if self._operator.restart_from_scratch(table, reason)
        }
        if self._operator.left_out and self._producer is not None:
            self._carry_out(RESTART)
        self._catch_up()
        self._prove(frozenset(repaired))

    def _states(self) -> dict[str, SnapshotState]:
        state = self._positions.sources().get("main")
        return {} if state is None else dict(state.snapshots)

    def _judged(
        self, connection: psycopg.Connection[Any], tables: list[str], repaired: frozenset[str]
    ) -> dict[str, str]:
        """Return what is wrong with tables, without those that are right."""
        states = self._states()
        going = {table: state for table, state in states.items() if table in tables and state.stopped is None}
        records = read_topics(self.settings, [state.topic for state in going.values()]) if going else {}
        found: dict[str, str] = {}
        for table in tables:
            if table not in states:
                found[table] = "no state is recorded"
            elif (reason := states[table].stopped) is not None:
                self._operator.require_justified(reason, table)
                self.outcome.still[table] = reason
                if table in repaired:
                    found[table] = f"repaired and re-snapshotted, but stopped: {reason}"
            elif how := self._difference(connection, table, records[states[table].topic]):
                found[table] = how
        return found

    def _difference(self, connection: psycopg.Connection[Any], table: str, records: list[Record]) -> str:
        schema, _, name = table.partition(".")
        try:
            how, rows = compared(connection, records, (schema, name))
        except psycopg.Error as error:
            how, rows = str(error), 0
        if how == INCOMPLETE and table not in self._completed:
            self._completed.add(table)
            self._application.request(table)
        if not how:
            self.outcome.equal[table] = rows
        return how

    def tail(self) -> str:
        """Return the last lines of the producer's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-6:])
