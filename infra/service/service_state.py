"""Records whether this process, as a service, is alive and ready, for its health endpoints.

Its main loop records that it advances; whatever waits for something outside of the process records the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from schemas.errors import printable

STALLED_SECONDS: Final = 600.0
"""A main loop that did not advance for so long counts as hung. Each of its waits for a server ends or repeats sooner,
so that an outage does not restart a service."""

START: Final = "start"
KAFKA: Final = "kafka"
DATABASE: Final = "database"
SLOT: Final = "slot"
TOPICS: Final = "topics"
HANDOVER: Final = "handover"


class ServiceState:
    """The state of one service; every method may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._missing: dict[str, str] = {START: "the service is starting"}
        self._advanced: float | None = None

    def advance(self) -> None:
        """Record that the main loop advances. Costs a reading of the clock."""
        self._advanced = self._clock()

    def rest(self) -> None:
        """Record that the main loop does not run: a start may wait for hours, such as for a running transaction."""
        self._advanced = None

    def away(self, what: str, reason: str) -> None:
        """Record that the service is not ready, because `what` is missing; replaces an earlier reason."""
        with self._lock:
            self._missing[what] = printable(reason)

    def back(self, *names: str) -> None:
        """Record that each of `names` is no longer missing. Idempotent."""
        if self._missing:
            with self._lock:
                for name in names:
                    self._missing.pop(name, None)

    def working(self) -> None:
        """Record that the service has everything that it needs."""
        self.back(*list(self._missing))

    @property
    def missing(self) -> Mapping[str, str]:
        """What is missing → the reason, empty if the service is ready."""
        with self._lock:
            return dict(self._missing)

    @property
    def stalled(self) -> float | None:
        """The seconds since the main loop advanced last, if those are too many; else None."""
        advanced = self._advanced
        seconds = 0.0 if advanced is None else self._clock() - advanced
        return seconds if seconds > STALLED_SECONDS else None


THIS: Final = ServiceState()
"""The state of this process: a process runs one service."""
