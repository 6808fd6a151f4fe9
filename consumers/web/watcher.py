"""Repeats a reading at most every second while someone watches, and rests otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from infra.service import log
from schemas.errors import HeadraceError

WATCHED_SECONDS: Final = 10.0
"""How long after the last request readings continue: a page asks every second, and a hidden one more rarely."""


class Audience:
    """Whether anyone watches; shared by the watchers and the requests, so every method may be called by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._changed = threading.Condition()
        self._until = float("-inf")
        self._closed = False

    def arrive(self) -> None:
        """Record a request."""
        with self._changed:
            self._until = self._clock() + WATCHED_SECONDS
            self._changed.notify_all()

    def leave(self) -> None:
        """End the waits of all watchers for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def watches(self) -> bool:
        """Whether there was a request within the last seconds."""
        return not self._closed and self._clock() < self._until

    def wait(self) -> bool:
        """Wait until someone watches; return False at the end."""
        with self._changed:
            while not self._closed and self._clock() >= self._until:
                self._changed.wait()
            return not self._closed

    def pause(self, seconds: float) -> None:
        """Wait that long, or until the end."""
        deadline = self._clock() + seconds
        with self._changed:
            while not self._closed and (left := deadline - self._clock()) > 0:
                self._changed.wait(left)


class Watcher:
    """Reads one server in a thread of its own: one that does not answer delays no other."""

    def __init__(
        self,
        name: str,
        look: Callable[[], None],
        rest: Callable[[], None],
        audience: Audience,
        *,
        every: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look` reads, and `rest` closes what it opened, once no one watches; `every` and `clock` are in seconds."""
        self._name = name
        self._look = look
        self._rest = rest
        self._audience = audience
        self._every = every
        self._clock = clock
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)
        self._failed: str | None = None

    @property
    def problem(self) -> str | None:
        """Why nothing new is known: the last reading failed, or the first has not ended yet; else None."""
        return self._failed if self._looked.is_set() else f"{self._name} has not answered yet"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread after `Audience.leave`."""
        self._thread.join(seconds)

    def looked(self, seconds: float) -> bool:
        """Wait for a reading since the last rest; return whether there was one, failed or not."""
        return self._looked.wait(seconds)

    def _run(self) -> None:
        while self._audience.wait():
            # It rests whenever it stops reading: once it waits again, nothing else would close what it opened.
            while self._audience.watches:
                self._read()
            self._looked.clear()
            self._try(self._rest)
        self._try(self._rest)

    def _read(self) -> None:
        started = self._clock()
        self._try(self._look)
        self._looked.set()
        # Never sooner than a whole interval after the last reading began, so that its cost has a bound.
        self._audience.pause(max(0.0, started + self._every - self._clock()))

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
            self._failed = None
        except HeadraceError as error:
            self._failed = str(error)
        except Exception as error:  # a bug in one reading must not end the thread
            self._failed = f"{self._name} could not be read: {type(error).__name__}"
            log.get().warning("reading failed", what=self._name, error=type(error).__name__)
