"""Cancels a step of a switchover once it times out or the command is stopped.

A running statement, or a commit that waits for a standby, is cancelled on the server; if the server does not answer,
the connection is shut down. Every cancelled step can be repeated.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from infra.service.signals import shut_down
from schemas.errors import HeadraceError, Interrupted

_LOOK_SECONDS: Final = 0.1


class Busy(HeadraceError):
    """Run it again to continue from there, or take it back with --abort until the copy is promoted."""


class StepLimit:
    """Limits a step to so many seconds, or until it is stopped; `waiting_for` describes what it waits for.

    Connections are shut down `cut_seconds` after the first cancellation: a running server has answered by then.
    """

    def __init__(self, seconds: float = 60.0, *, cut_seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._cut_seconds = cut_seconds
        self.stop = threading.Event()
        self.waiting_for = "the server"
        self._deadline = float("inf")
        self._connections: list[psycopg.Connection[Any]] = []
        self._remedy: str | None = None

    def watch(self, connection: psycopg.Connection[Any]) -> None:
        """Add a connection that steps use."""
        self._connections.append(connection)

    @property
    def over(self) -> bool:
        return self.stop.is_set() or time.monotonic() > self._deadline

    def pause(self, seconds: float) -> None:
        """Sleep between two polls; raises Busy or Interrupted when the step is over."""
        self.stop.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raise Interrupted when stopped, Busy when the step has taken too long."""
        if self.stop.is_set():
            raise Interrupted(f"stopped while waiting for {self.waiting_for}", remedy=self._remedy)
        if self.over:
            raise Busy(f"timed out after {self.seconds:.0f} s waiting for {self.waiting_for}", remedy=self._remedy)

    @contextmanager
    def step(self, remedy: str | None) -> Iterator[None]:
        """Limit the work inside; when it is over, raise Busy or Interrupted with `remedy` (None: the default)."""
        self._deadline, self._remedy = time.monotonic() + self.seconds, remedy
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), name="step limit", daemon=True)
        watcher.start()
        try:
            yield
        except (HeadraceError, psycopg.Error) as error:
            if self.over and not isinstance(error, Busy | Interrupted):
                self._raise(error)
            raise
        finally:
            done.set()
            watcher.join()
            self._deadline = float("inf")

    def cancel(self) -> None:
        """Cancel the running statements."""
        for connection in self._connections:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=1.0)

    def cut(self) -> None:
        """Shut the connections down."""
        for connection in self._connections:
            shut_down(connection)

    def _raise(self, error: BaseException) -> None:
        try:
            self.check()
        except HeadraceError as instead:
            raise instead from error

    def _watch(self, done: threading.Event) -> None:
        first: float | None = None
        while not done.wait(_LOOK_SECONDS):
            # Repeatedly: a request that arrives between two statements cancels nothing.
            if self.over:
                first = first or time.monotonic()
                self.cancel()
                if time.monotonic() - first > self._cut_seconds:
                    self.cut()
