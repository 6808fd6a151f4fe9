"""One member of a migration's consumer group: consume, decide, apply with the ledger in one transaction, repeat.

The ledger in the target database is the truth about progress. Wherever it is not known what became of a
transaction, the member asks the ledger and reads on from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Final

import psycopg

from consumers.contract.declarations import declared
from consumers.contract.external import Pace
from consumers.contract.migration import Migration
from consumers.delivery.dead_letter_topic import Parking
from consumers.delivery.group import Group, member_name
from consumers.delivery.topic_identity import recreated, topic_ids
from consumers.delivery.topics import not_captured, schemas_of, source_topics
from consumers.ledger.error_policy import Action, Rule, rule_for, stopped
from consumers.ledger.owner_lookup import require_not_elsewhere
from consumers.ledger.progress import Entry, Ledger, Place
from consumers.ledger.target import Connection, Target, backoff
from consumers.pace.pacing import Pacing
from consumers.planning.key_selection import Selection
from consumers.planning.planner import Planner
from consumers.runtime.applying import Applying
from consumers.runtime.catch_up import Ends
from consumers.runtime.circuit_breaker import CircuitBreaker
from consumers.runtime.completion import Completion
from consumers.runtime.external_driver import Working
from consumers.runtime.throttle import Holding
from consumers.runtime.totals import Report, Totals
from infra.kafka import clients
from infra.postgres import connect
from infra.postgres.control import ensure_control_schema
from infra.schema_registry.topic_registry import open_registry
from infra.service import log, metrics
from infra.settings.model import Settings
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, HeadraceError, Interrupted
from schemas.topics import group_name

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
        self._schemas = schemas_of(open_registry(settings), stopping)
        self._planner = Planner(migration, self._schemas, database)
        self._ledger = Ledger(migration.name, migration.gitlab_schema, member_name(), declared(migration))
        self._completion = Completion(settings, migration, database, self._topics, self._ledger, stopping)
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
            search_path=settings.database(database).search_path,
            missed=partial(require_not_elsewhere, settings, database, migration.gitlab_schema),
        )
        self._breaker = CircuitBreaker(
            migration.name, self._target, self._group, ends=until_caught_up or until_complete
        )
        self._pacing = Pacing(self._section)
        self._holding = Holding(self._section, migration, member_name())
        self._working = Working(settings, migration, database)
        self._read_all = False
        self._run = 0
        self._session = 0
        """The number of the target's session in which the group's positions were read from the ledger."""
        self._log = log.get(migration=migration.name)
        self._next_check = self._next_report = self._next_log = self._next_end_check = 0.0
        self._applying = Applying(
            migration,
            database,
            planner=self._planner,
            ledger=self._ledger,
            group=self._group,
            target=self._target,
            parking=Parking(settings, migration.name, database),
            pacing=self._pacing,
            stopping=stopping,
            breaker=self._breaker,
            recover=self._recover,
            proceed=self._proceed,
        )
        self.totals = self._applying.totals

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
                    self._look(patiently=True)
                    if self._target.sessions == self._session:
                        break
                if self._until_complete and self._completion.complete:
                    break
        except Interrupted:
            if not self._stopping.is_set():
                raise
        finally:
            durable = self._close()
        if self._until_caught_up and not durable and not self._stopping.is_set():
            raise DatabaseUnavailable(f"the last commits of {self._migration.name} may be lost: run it again")
        return self.totals

    def cancel(self) -> None:
        """Cancel the statement under way, if any; called from another thread when stopping takes too long."""
        self._target.cancel()
        self._working.cancel()
        self._completion.cancel()

    def cut(self) -> None:
        """Shut the connections down; called from another thread when cancelling did not help."""
        self._target.cut()
        self._working.cut()

    def _prepare(self) -> None:
        database = self._settings.database(self._database)
        dsn = database.dsn.get_secret_value()

        def prepare(connection: Connection) -> None:
            with connect.translated(dsn):
                ensure_control_schema(
                    connection,
                    self._database,
                    database.gitlab_schemas,
                    self._migration.own_tables,
                    prefix=self._settings.prefix,
                )
            self._begin(connection)
            self._completion.complete_already(connection)

        self._target.ask(prepare)
        # One that was killed may have parked the change that the breaker trips at.
        self._breaker.look(self._run)

    def _begin(self, connection: Connection) -> None:
        """Take up the current run, with what it is limited to."""
        run = self._ledger.begin(connection)
        if run != self._run:
            selection = self._ledger.selection(connection, run)
            self._planner.selection = Selection(selection, self._schemas) if selection else None
            self._run = self._applying.run = run

    def _wait_for_topics(self) -> None:
        told = False
        while missing := self._group.missing(self._topics):
            if not told:
                uncaptured = not_captured(self._settings, self._migration, self._database)
                self._log.info("waiting for the producer to make the topics", topics=missing, not_captured=uncaptured)
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
        if self._target.sessions != self._session:
            self._read_all = False
            self._reposition()
        self._applying.bring_back()
        busy = self._working.pace is Pace.BUSY
        records = self._group.poll(self._pacing.records, 0.0 if busy else self._applying.waiting.seconds(_POLL_SECONDS))
        if records:
            self._applying.process(records)
        self._work()
        if self._completion.due(idle=not records):
            self._look()
        self._tell()

    def _look(self, *, patiently: bool = False) -> None:
        """See whether the migration is complete, counting beside the work; a member that is about to end waits.

        One that goes on afterwards serves what still changes.
        """
        if self._completion.complete or self._stopping.is_set() or self._working.pace is not Pace.DONE:
            return
        wait = self._stopping if patiently else None
        try:
            if self._group.confirm():
                self._completion.look(self._target, self._run, wait=wait, strict=self._until_complete)
        except BrokerUnavailable as error:
            self._log.warning("waiting for Kafka", reason=str(error))

    def _work(self) -> None:
        """Let the migration do a step of what lies outside of the database."""
        if self._stopping.is_set():
            return
        try:
            self._working.step(self._run)
        except (psycopg.Error, HeadraceError) as error:
            self._recover(error, rule_for(error), self._working.attempt)

    def _proceed(self, rest: float) -> bool:
        """Rest, and look whether the database is healthy; return whether what was read is good, else read it again."""
        if (rest and not self._group.rest(rest)) or not self._healthy():
            self._reposition()
            return False
        self._tell()
        return True

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
            entries = self._assigned(list(self._group.positions))
            session = self._target.sessions
            if self._group.reposition(entries):
                self._session = session
                return

    def _assigned(self, places: Sequence[Place]) -> Mapping[Place, Entry]:
        """Return where the ledger stands in `places`; see group.Assigned."""
        if not places:
            return {}

        def opened(connection: Connection) -> tuple[dict[str, str], dict[Place, Entry]]:
            topics = [place.topic for place in places]
            ids = clients.ask(lambda: topic_ids(self._settings.kafka, topics), self._stopping)
            self._begin(connection)
            wanted = {place: ids[place.topic] for place in places}
            return ids, self._ledger.open(connection, self._run, wanted)

        ids, entries = self._target.ask(opened)
        for place, entry in entries.items():
            if entry.topic_id != ids[place.topic]:
                raise recreated(place.topic, entry.topic_id, ids[place.topic])
        return entries

    def _reached(self, ends: Ends | None) -> bool:
        if ends is None or self._working.pace is not Pace.DONE:
            return False
        if self._read_all:
            return True
        self._read_all = (
            ends.reached(
                self._group.positions,
                lambda: self._target.ask(lambda connection: self._ledger.read(connection, self._run)),
            )
            and self._group.confirm()
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

    def _close(self) -> bool:
        """End everything; return whether all that was committed is durable."""
        places = list(self._group.positions)
        self._completion.close()
        self._working.stop()
        try:
            durable = self._target.finish(lambda connection: self._leave(connection, places))
            self._group.commit()
            if self._report is not None:
                self._report(self.totals, self._group.positions)
        finally:
            self._group.close()
            self._target.close()
            self._applying.close()
        return durable

    def _leave(self, connection: Connection, places: Sequence[Place]) -> None:
        self._ledger.leave(connection, self._run, places)
        self._holding.leave(connection)
