"""One member of a migration's consumer group: consume, decide, apply with the ledger in one transaction, repeat.

The ledger in the target database is the truth about progress. Wherever it is not known what became of a
transaction, the member asks the ledger and reads on from there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import psycopg
from confluent_kafka import Message

from consumers import contract_checks, fence
from consumers.ahead import Ahead
from consumers.batches import Overrides, Planner, SubBatch, origin_of
from consumers.circuit_breaker import CircuitBreaker
from consumers.completion import Completion
from consumers.decisions import Change, Park
from consumers.ends import Ends
from consumers.error_policy import Action, Rule, reason_of, rule_for, stopped, timed_out
from consumers.failing_rows import FailingRows, Verdict
from consumers.group import Group, TopicRecreated, group_name, member_name, topic_ids
from consumers.holding import Holding
from consumers.inputs import schemas_of, source_topics
from consumers.ledger import Entry, Ledger, Place
from consumers.migration import Migration
from consumers.outside import Pace, Working
from consumers.pacing import Pacing
from consumers.parking import Parking
from consumers.rates import Rate
from consumers.selection import Selection
from consumers.target import Connection, Target, backoff
from consumers.totals import Report, Totals
from consumers.verify import RowsLeft
from infra import log, metrics, postgres
from infra.control import ensure_control_schema
from infra.registry import open_registry
from infra.settings import Settings
from schemas.errors import HeadraceError, Interrupted

_POLL_SECONDS: Final = 0.1
_CHECK_SECONDS: Final = 1.0
"""How often the database is asked whether the migration is paused, and the ledger whether all is done."""
_TOPIC_SECONDS: Final = 1.0
_REPORT_SECONDS: Final = 0.2
_LOG_SECONDS: Final = 10.0


class Runtime:
    """Runs a migration until it is stopped, or until it has caught up or is complete, if that was asked.

    `stopping` is set from outside, by a signal handler; `run` then returns within about a second.
    """

    def __init__(
        self,
        settings: Settings,
        migration: Migration,
        database: str,
        *,
        stopping: threading.Event,
        until_caught_up: bool = False,
        until_complete: bool = False,
        report: Report | None = None,
    ) -> None:
        self._settings = settings
        self._migration = migration
        self._section = settings.migration(migration.name)
        self._database = database
        self._stopping = stopping
        self._until_caught_up = until_caught_up
        self._until_complete = until_complete
        self._report = report
        self._topics = source_topics(settings, migration, database)
        self._schemas = schemas_of(open_registry(settings))
        self._planner = Planner(migration, self._schemas)
        self._ledger = Ledger(migration.name, migration.gitlab_schema, member_name())
        self._completion = Completion(settings, migration, database, self._topics, self._ledger)
        self._parking = Parking(settings, migration.name)
        self._group = Group(
            settings.kafka,
            group_name(settings.prefix, migration.name),
            assigned=self._assigned,
            stopping=stopping,
        )
        self._target = Target(
            settings.database(database).dsn.get_secret_value(),
            database=database,
            migration=migration.name,
            stopping=stopping,
            wait=self._group.wait,
        )
        self._breaker = CircuitBreaker(
            migration.name, self._target, self._group, ends=until_caught_up or until_complete
        )
        self._failing = FailingRows(self._planner, self._group.positions, self._try_out)
        self._ahead = Ahead("plan")
        self._pacing = Pacing(self._section)
        self._holding = Holding(self._section, migration, member_name())
        self._working = Working(settings, migration, database)
        self._rest = 0.0
        self._read_all = False
        self._run = 0
        self._verdict = ""
        self._rates: dict[Place, Rate] = {}
        self._log = log.get(migration=migration.name)
        self._next_check = self._next_report = self._next_log = self._next_end_check = 0.0
        self.totals = Totals()

    def run(self) -> Totals:
        """Work until stopped, or caught up if that was asked; return what was done.

        With `until_caught_up` that is when the ledger, whoever moves it, has reached the ends that the topics
        had when this member started, once they all existed. A migration that is complete already returns at once.
        Raises HeadraceError for what waiting cannot mend, and RowsLeft with `until_complete` when all was read twice
        and rows are left; the ledger is right even then.
        """
        try:
            self._prepare()
            if self._completion.complete:
                self._log.info("complete already; to run it again: headrace replay", run=self._run)
                return self.totals
            self._wait_for_topics()
            ends = Ends(self._settings.kafka, self._topics) if self._until_caught_up else None
            self._group.join(self._topics)
            while not self._stopping.is_set():
                self._turn()
                if self._reached(ends):
                    self._breaker.hold(self._working.stop)
                    self._look()
                    break
                if self._until_complete and self._completion.complete:
                    break
        except Interrupted:
            if not self._stopping.is_set():
                raise
        finally:
            self._close()
        return self.totals

    def cancel(self) -> None:
        """Cancel the statement under way, if any; called from another thread when stopping takes too long."""
        self._target.cancel()
        self._working.cancel()

    def cut(self) -> None:
        """Shut the connections down; called from another thread when cancelling did not help."""
        self._target.cut()
        self._working.cut()

    def _prepare(self) -> None:
        database = self._settings.database(self._database)
        dsn = database.dsn.get_secret_value()

        def prepare(connection: Connection) -> None:
            with postgres.translated(dsn):
                ensure_control_schema(connection, self._database, database.gitlab_schemas, self._migration.own_tables)
            self._begin(connection)
            self._completion.complete_already(connection)

        self._target.ask(prepare)

    def _begin(self, connection: Connection) -> None:
        """Take up the current run, with what it is limited to."""
        run = self._ledger.begin(connection)
        if run != self._run:
            selection = self._ledger.selection(connection, run)
            self._planner.selection = Selection(selection, self._schemas) if selection else None
            self._run = run

    def _wait_for_topics(self) -> None:
        told = False
        while missing := self._group.missing(self._topics):
            if not told:
                self._log.info("waiting for the producer to make the topics", topics=missing)
                told = True
            if self._stopping.wait(_TOPIC_SECONDS):
                raise Interrupted(f"{self._migration.name} was stopped while it waited for {', '.join(missing)}")

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            if not self._hold_while_paused():
                self._reposition()
        if not self._healthy():
            self._reposition()
        busy = self._working.pace is Pace.BUSY
        records = self._group.poll(self._pacing.records, 0.0 if busy else _POLL_SECONDS)
        if records:
            self._process(records)
        self._work()
        if self._completion.due(idle=not records):
            self._look()
        self._tell()

    def _look(self) -> None:
        """See whether the migration is complete. A member that goes on afterwards serves what still changes."""
        if self._completion.complete or self._stopping.is_set() or self._working.pace is not Pace.DONE:
            return
        verdict = self._completion.look(self._target, self._run)
        if verdict.complete:
            self._log.info("complete; later starts return at once", run=self._run)
        elif self._until_complete and verdict.said != self._verdict:
            self._log.info("not complete yet", reason=verdict.said)
        if self._until_complete and verdict.final:
            raise RowsLeft(f"{self._migration.name}: {verdict.said}, and no event is going to bring them")
        self._verdict = verdict.said

    def _work(self) -> None:
        """Let the migration do a step of what lies outside of the database."""
        if self._stopping.is_set():
            return
        try:
            self._working.step(self._run)
        except (psycopg.Error, HeadraceError) as error:
            self._recover(error, rule_for(error), self._working.attempt)

    def _process(self, records: Sequence[Message]) -> None:
        plan = self._planner.plan(records, self._group.positions, lambda: self._pacing.limit)
        with contextlib.closing(self._ahead.of(plan)) as sub_batches:
            for sub_batch in sub_batches:
                self._failing.begin(records)
                if self._stopping.is_set() or not self._settle(sub_batch, records):
                    break
                if (self._rest and not self._group.rest(self._rest)) or not self._healthy():
                    self._reposition()
                    break
                self._tell()
        self._group.commit()

    def _settle(self, sub_batch: SubBatch, records: Sequence[Message]) -> bool:
        """Carry out a sub-batch, whatever it takes; return False when the rest of the batch must be read again."""
        attempt = 0
        while not self._stopping.is_set():
            try:
                if sub_batch.parked:
                    self._breaker.require_closed()
                    self._parking.keep(sub_batch.parked, self._run)
                self._apply(sub_batch)
                if sub_batch.parked:
                    self._breaker.look(self._run)
            except (psycopg.Error, HeadraceError) as error:
                attempt += 1
                verdict, failure = self._failing.judge(sub_batch, error, attempt)
                if verdict is Verdict.AGAIN:
                    continue
                if verdict is not Verdict.RECOVER:
                    return self._split(sub_batch, records, error, park=verdict is Verdict.PARK)
                if not self._recover(failure, rule_for(failure), attempt):
                    return False
                if timed_out(error) and len(sub_batch.changes) > 1:
                    self._pacing.timed_out()
                    return self._piecemeal(sub_batch, records, min(self._pacing.limit, len(sub_batch.changes) // 2))
            else:
                return True
        return False

    def _apply(self, sub_batch: SubBatch) -> None:
        """Do one transaction: ownership, effects, ledger. Whatever is raised, nothing was written."""
        for advance in sub_batch.advances:
            advance.rate = self._rates.setdefault(advance.place, Rate()).per_second
        connection = self._target.connection
        started = time.monotonic()
        with connection.transaction(), connection.cursor() as cursor:
            fence.hold(
                cursor,
                migration=self._migration.name,
                run=self._run,
                gitlab_schema=self._migration.gitlab_schema,
                database=self._database,
            )
            applied = contract_checks.apply(self._migration, cursor, sub_batch.changes) if sub_batch.changes else 0
            held = self._ledger.advance(cursor, self._run, sub_batch.advances, applied)
            contract_checks.require_held(self._migration, held)
        self._rest = self._pacing.done(len(sub_batch.changes), time.monotonic() - started)
        self._failing.applied(sub_batch.changes)
        self._count(sub_batch, applied)

    def _try_out(self, change: Change, sub_batch: SubBatch) -> None:
        """Do the transaction of `change` in place of those of `sub_batch`, and roll it back; raises what it raises."""
        with self._target.connection.transaction(force_rollback=True), self._target.connection.cursor() as cursor:
            fence.hold(
                cursor,
                migration=self._migration.name,
                run=self._run,
                gitlab_schema=self._migration.gitlab_schema,
                database=self._database,
            )
            contract_checks.apply(self._migration, cursor, [change])
            self._ledger.advance(cursor, self._run, sub_batch.advances, 0)
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")

    def _count(self, sub_batch: SubBatch, applied: int) -> None:
        for advance in sub_batch.advances:
            self._group.positions[advance.place] = advance.next_offset
            self._rates[advance.place].add(advance.events)
        events = sum(advance.events for advance in sub_batch.advances)
        parked = sum(advance.parked for advance in sub_batch.advances)
        skipped = events - parked - applied
        self.totals.transactions += 1
        self.totals.events += events
        self.totals.applied += applied
        self.totals.skipped += skipped
        self.totals.parked += parked
        metrics.APPLIED.labels(self._migration.name).inc(applied)
        metrics.SKIPPED.labels(self._migration.name).inc(skipped)
        metrics.PARKED.labels(self._migration.name).inc(parked)

    def _split(self, sub_batch: SubBatch, records: Sequence[Message], error: Exception, *, park: bool) -> bool:
        """Do a refused sub-batch in halves, or park the change that is refused alone."""
        overrides: Overrides = {}
        if park and isinstance(error, psycopg.Error):
            overrides = {origin_of(sub_batch.origins[0]): Park(reason_of(error))}
        return self._piecemeal(sub_batch, records, max(1, len(sub_batch.changes) // 2), overrides)

    def _piecemeal(
        self, sub_batch: SubBatch, records: Sequence[Message], limit: int, overrides: Overrides | None = None
    ) -> bool:
        part = records[sub_batch.start : sub_batch.end]
        pieces = self._planner.plan(part, self._group.positions, limit, overrides or {})
        return all(self._settle(piece, part) for piece in pieces)

    def _recover(self, error: Exception, rule: Rule, attempt: int) -> bool:
        """Do what the table says; return whether the same sub-batch may be tried again."""
        good = False
        if rule.action is Action.REPOSITION:
            self._log.info(rule.what, reason=str(error))
        elif rule.action is Action.HOLD:
            good = self._hold_while_paused()
        elif rule.action is Action.RETRY:
            pause = backoff(attempt)
            self._log.warning(rule.what, hint=rule.hint, attempt=attempt, retry_in_seconds=pause)
            good = self._group.wait(pause)
        elif rule.action is Action.RECONNECT:
            self._log.warning(rule.what, hint=rule.hint, database=self._database)
            self._target.reconnect()
        else:
            raise stopped(error, rule, self._database) from error
        if not good:
            self._reposition()
        return good

    def _hold_while_paused(self) -> bool:
        """Stay in the group without reading as long as an operator wants; return whether what was read is good.

        So too while the migration has failed.
        """
        if not self._breaker.hold(self._working.stop):
            return False
        paused = self._ledger.pausing(self._database)
        if not self._target.ask(paused):
            return True
        self._working.stop()
        self._log.info("paused; go on with `headrace resume`")
        metrics.HELD.labels(self._migration.name).set(1)
        good = self._group.wait(_CHECK_SECONDS, still=lambda: self._target.ask(paused))
        metrics.HELD.labels(self._migration.name).set(0)
        self._log.info("resumed")
        return good

    def _healthy(self) -> bool:
        """Stay in the group without reading as long as the database suffers; return whether what was read is good."""
        if not self._holding.due() or not self._target.ask(self._holding.look):
            return True
        self._working.stop()
        return self._group.wait(self._holding.interval, still=lambda: self._target.ask(self._holding.look))

    def _reposition(self) -> None:
        """Read on from the ledger, in the current run: what was read and not applied arrives again."""
        while not self._stopping.is_set():
            places = list(self._group.positions)
            if self._group.reposition(self._assigned(places)):
                return

    def _assigned(self, places: Sequence[Place]) -> Mapping[Place, Entry]:
        """Return where the ledger stands in `places`; see group.Assigned."""
        if not places:
            return {}

        def opened(connection: Connection) -> tuple[dict[str, str], dict[Place, Entry]]:
            ids = topic_ids(self._settings.kafka, [place.topic for place in places])
            self._begin(connection)
            wanted = {place: ids[place.topic] for place in places}
            return ids, self._ledger.open(connection, self._run, wanted)

        ids, entries = self._target.ask(opened)
        for place, entry in entries.items():
            if entry.topic_id != ids[place.topic]:
                raise TopicRecreated(
                    f"{place.topic} was deleted and made again: the ledger is of the topic with id "
                    f"{entry.topic_id}, Kafka has {ids[place.topic]}"
                )
        return entries

    def _reached(self, ends: Ends | None) -> bool:
        if ends is None or self._working.pace is not Pace.DONE:
            return False
        if self._read_all:
            return True
        self._read_all = ends.reached(
            self._group.positions, lambda: self._target.ask(lambda connection: self._ledger.read(connection, self._run))
        )
        if self._read_all:
            self._working.stop()  # and begin anew: the last events may have asked for more
        return False

    def _tell(self) -> None:
        now = time.monotonic()
        if self._report is not None and now >= self._next_report:
            self._next_report = now + _REPORT_SECONDS
            self._report(self.totals, self._group.positions)
        if now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            if self.totals.events:
                self._log.info("progress", **asdict(self.totals))

    def _close(self) -> None:
        places = list(self._group.positions)
        self._working.stop()
        try:
            self._target.finish(lambda connection: self._leave(connection, places))
            self._group.commit()
            if self._report is not None:
                self._report(self.totals, self._group.positions)
        finally:
            self._group.close()
            self._target.close()
            self._ahead.close()

    def _leave(self, connection: Connection, places: Sequence[Place]) -> None:
        self._ledger.leave(connection, self._run, places)
        self._holding.leave(connection)
