"""The main loop of a consumer: consume, decide, apply with the ledger in one transaction, repeat.

The ledger in the target database is the source of truth about progress. Whenever the outcome of a transaction is
unknown, the consumer continues from the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Final

import psycopg

from consumers.contract.external import Pace
from consumers.ledger.error_policy import rule_for
from consumers.ledger.progress import Place
from consumers.ledger.target import Connection
from consumers.runtime.applying import Applying
from consumers.runtime.catch_up import Ends
from consumers.runtime.interruptions import Interruptions
from consumers.runtime.parts import Parts
from consumers.runtime.totals import Report, Totals
from infra.service import log
from infra.service.service_state import THIS, TOPICS
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, HeadraceError, Interrupted
from schemas.lazy_dataclass import dataclass

_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Intervals:
    """How often a consumer does what it does again and again, in seconds."""

    check: float = 1.0
    """Whether the migration is paused, and up to where Kafka's offsets may follow."""
    topics: float = 1.0
    report: float = 0.2
    log: float = 10.0
    overview: float = 5.0


Overview = Callable[[Connection, Mapping[Place, int]], None]
"""Exports what is recorded of the migration; called with the lag of the consumer's partitions."""

USUAL: Final = Intervals()


class Consumer:
    """Runs a migration until it is stopped, has caught up or is complete, as requested.

    A signal handler sets `stopping`; `run` then returns within about a second.
    """

    def __init__(
        self,
        parts: Parts,
        stopping: threading.Event,
        *,
        ends: Callable[[], Ends] | None = None,
        until_complete: bool = False,
        report: Report | None = None,
        overview: Overview | None = None,
        intervals: Intervals = USUAL,
    ) -> None:
        """`ends` reads the topics' ends, for a consumer that runs until it has caught up with them."""
        self._parts = parts
        self._migration = parts.migration
        self._group = parts.group
        self._target = parts.target
        self._ledger = parts.ledger
        self._positions = parts.positions
        self._working = parts.working
        self._completion = parts.completion
        self._stopping = stopping
        self._read_ends = ends
        self._intervals = intervals
        self._until_complete = until_complete
        self._report = report
        self._overview = overview
        self._read_all = False
        self._log = log.get(migration=parts.migration.name)
        self._next_check = self._next_report = self._next_log = self._next_overview = 0.0
        self._interruptions = Interruptions(parts, self._report_progress)
        self._applying = Applying(parts, stopping, self._interruptions)
        self.totals = parts.totals

    def run(self) -> Totals:
        """Run until stopped, caught up or complete; return the totals.

        With `ends` it returns when the ledger has reached the topics' ends as of this consumer's start,
        by whichever consumer. A migration that is already complete returns immediately. Raises HeadraceError for an
        error that waiting cannot resolve, and, with `until_complete`, RowsLeft if rows remain after a second count. The
        ledger is correct even then.
        """
        try:
            self._prepare()
            if self._completion.complete:
                self._log.info(
                    "migration already complete", run=self._positions.run, hint="run it again with `headrace replay`"
                )
                return self.totals
            self._wait_for_topics()
            ends = None if self._read_ends is None else self._read_ends()
            self._group.join(self._parts.topics)
            THIS.working()
            while not self._stopping.is_set():
                self._turn()
                if self._reached(ends):
                    self._parts.breaker.hold(self._working.stop)
                    self._look(patiently=True)
                    if self._positions.current:
                        break
                if self._until_complete and self._completion.complete:
                    break
        except Interrupted:
            if not self._stopping.is_set():
                raise
        finally:
            durable = self._close()
        if self._read_ends is not None and not durable and not self._stopping.is_set():
            raise DatabaseUnavailable(f"the last commits of {self._migration.name} may be lost: run it again")
        return self.totals

    def cancel(self) -> None:
        """Cancel the running statement. Called from another thread when stopping takes too long."""
        self._target.cancel()
        self._working.cancel()
        self._completion.cancel()

    def cut(self) -> None:
        """Shut down the connections. Called from another thread if cancelling did not help."""
        self._target.cut()
        self._working.cut()

    def _prepare(self) -> None:
        def prepare(connection: Connection) -> None:
            self._parts.prepare(connection)
            self._positions.begin(connection)
            self._completion.complete_already(connection)

        self._target.ask(prepare)
        # A consumer that was killed may have recorded the dead letter that trips the breaker.
        self._parts.breaker.look(self._positions.run)

    def _wait_for_topics(self) -> None:
        logged = False
        while missing := self._group.missing(self._parts.topics):
            if not logged:
                self._log.info(
                    "waiting for the producer to create the topics",
                    topics=missing,
                    not_captured=self._parts.not_captured,
                )
                logged = True
                THIS.away(TOPICS, f"the producer has not created {', '.join(missing)} yet")
            if self._stopping.wait(self._intervals.topics):
                raise Interrupted(f"{self._migration.name} was stopped while it waited for {', '.join(missing)}")

    def _turn(self) -> None:
        THIS.advance()
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + self._intervals.check
            self._positions.follow()
            if not self._interruptions.unpaused():
                self._positions.read_again()
        if not self._interruptions.healthy():
            self._positions.read_again()
        if not self._positions.current:
            self._read_all = False
            self._positions.read_again()
        self._applying.bring_back()
        busy = self._working.pace is Pace.BUSY
        records = self._group.poll(
            self._parts.pacing.records, 0.0 if busy else self._applying.waiting.seconds(_POLL_SECONDS)
        )
        if records:
            self._applying.process(records)
        self._work()
        if self._completion.due(idle=not records):
            self._look()
        self._report_progress()

    def _look(self, *, patiently: bool = False) -> None:
        """Check whether the migration is complete, counting in the background; `patiently` waits for the count."""
        if self._completion.complete or self._stopping.is_set() or self._working.pace is not Pace.DONE:
            return
        wait = self._stopping if patiently else None
        try:
            if self._group.confirm():
                self._completion.look(self._target, self._positions.run, wait=wait, strict=self._until_complete)
        except BrokerUnavailable as error:
            self._log.warning("waiting for Kafka", reason=str(error))

    def _work(self) -> None:
        """Run one step of the migration's external work."""
        if self._stopping.is_set():
            return
        try:
            self._working.step(self._positions.run)
        except (psycopg.Error, HeadraceError) as error:
            self._interruptions.recover(error, rule_for(error), self._working.attempt)

    def _reached(self, ends: Ends | None) -> bool:
        if ends is None or self._working.pace is not Pace.DONE:
            return False
        if self._read_all:
            return True
        self._read_all = (
            ends.reached(
                self._group.positions,
                lambda: self._target.ask(lambda connection: self._ledger.read(connection, self._positions.run)),
            )
            and self._group.confirm()
        )
        if self._read_all:
            self._working.stop()  # restarts it: the last events may have added work
        return False

    def _report_progress(self) -> None:
        now = time.monotonic()
        if self._report is not None and now >= self._next_report:
            self._next_report = now + self._intervals.report
            self._report(self.totals, self._group.positions)
        if self._overview is not None and now >= self._next_overview:
            self._next_overview = now + self._intervals.overview
            lag, overview = self._group.lag(), self._overview
            self._target.ask(lambda connection: overview(connection, lag))
        if now >= self._next_log:
            self._next_log = now + self._intervals.log
            if self.totals.events:
                self._log.info("progress", **asdict(self.totals))

    def _close(self) -> bool:
        """Close everything; return whether all commits are durable."""
        places = list(self._group.positions)
        self._completion.close()
        self._working.stop()
        try:
            durable = self._target.finish(lambda connection: self._leave(connection, places))
            if durable and self._positions.current:
                self._group.commit()
            if self._report is not None:
                self._report(self.totals, self._group.positions)
        finally:
            self._group.close()
            self._target.close()
            self._applying.close()
        return durable

    def _leave(self, connection: Connection, places: Sequence[Place]) -> None:
        self._ledger.leave(connection, self._positions.run, places)
        self._parts.throttle.leave(connection)
