"""Drives a migration's effects outside of the database, a step at a time between its batches."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Final

from consumers.contract import contract_checks
from consumers.contract.external import Outside, Pace
from consumers.contract.migration import Migration
from infra.service import log
from infra.settings.model import Settings

_DONE_SECONDS: Final = 0.5
"""How often to look again once nothing was left to do."""


class Working:
    """Drives one migration's `work`, a step at a time."""

    def __init__(self, settings: Settings, migration: Migration, database: str) -> None:
        self._migration = migration
        self._outside = Outside(settings, migration, database)
        self._steps: Generator[Pace] | None = None
        self._not_before = 0.0
        self._log = log.get(migration=migration.name)
        self.pace = Pace.BUSY
        """What the last step said; at first there may be something to do."""
        self.attempt = 0
        """How many times in a row it failed."""

    def step(self, run: int) -> None:
        """Go on until `work` gives control back. Whatever it raises, `stop` has been called and it may begin anew."""
        if self.pace is Pace.DONE and time.monotonic() < self._not_before:
            return
        if self._steps is None or self._outside.run != run:
            self.stop()
            self._outside.run = run
            self._steps = contract_checks.work(self._migration, self._outside, Pace)
        try:
            self.pace = next(self._steps, Pace.DONE)
        except BaseException:
            self.attempt += 1
            self.stop()
            raise
        self.attempt = 0
        if self.pace is Pace.DONE:
            self._not_before = time.monotonic() + _DONE_SECONDS

    def stop(self) -> None:
        """End what is under way, now; the next step begins anew. A duplicate does nothing."""
        steps, self._steps = self._steps, None
        self.pace = Pace.BUSY
        if steps is not None:
            try:
                steps.close()
            except Exception as error:  # what ends is not to keep the member from ending
                self._log.warning("the work outside did not end cleanly", detail=type(error).__name__)
        self._outside.close()

    def cancel(self) -> None:
        """See Outside.cancel."""
        self._outside.cancel()

    def cut(self) -> None:
        """See Outside.cut."""
        self._outside.cut()
