"""Drives a migration's external work, one step at a time between batches."""

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
"""How often to check again once the work was done."""


class Working:
    """Drives one migration's `work`, one step at a time."""

    def __init__(self, settings: Settings, migration: Migration, database: str) -> None:
        self._migration = migration
        self._outside = Outside(settings, migration, database)
        self._steps: Generator[Pace] | None = None
        self._not_before = 0.0
        self._log = log.get(migration=migration.name)
        self.pace = Pace.BUSY
        """The result of the last step; initially there may be work."""
        self.attempt = 0
        """How many times in a row it failed."""

    def step(self, run: int) -> None:
        """Run `work` until it yields. If it raises, `stop` has been called and the next step restarts it."""
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
        """End work in progress immediately; the next step restarts it. Idempotent."""
        steps, self._steps = self._steps, None
        self.pace = Pace.BUSY
        if steps is not None:
            try:
                steps.close()
            except Exception as error:  # must not keep the consumer from stopping
                self._log.warning("external work did not end cleanly", detail=type(error).__name__)
        self._outside.close()

    def cancel(self) -> None:
        """See Outside.cancel."""
        self._outside.cancel()

    def cut(self) -> None:
        """See Outside.cut."""
        self._outside.cut()
