"""Reads what viewers open: each list at most once a second, and few at a time.

A server that does not answer thus delays only those who ask for its lists: without a limit they would take every thread
of the console.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, TypeVar

from schemas.errors import Unavailable

_FRESH_SECONDS: Final = 1.0
_AT_ONCE: Final = 8

Found = TypeVar("Found")


class TooManyViewers(Unavailable):
    """Ask again in a few seconds; a server may be slow to answer."""


class _Entry:
    def __init__(self) -> None:
        self.reading = threading.Lock()
        self.at = float("-inf")
        self.found: Any = None
        self.changes = 0
        self.seen = 0


class Listings(Generic[Found]):
    """The lists that were read last; each method may be called by several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._entries: dict[Hashable, _Entry] = {}
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def get(self, key: Hashable, read: Callable[[], Found]) -> Found:
        """Return what `read` returned within the last second, or returns now.

        Raises TooManyViewers in place of waiting behind many others, and what `read` raises.
        """
        if not self._places.acquire(blocking=False):
            raise TooManyViewers("too many lists are being read")
        try:
            entry = self._entry(key)
            with entry.reading:
                changes = entry.changes
                if entry.seen != changes or self._clock() - entry.at >= _FRESH_SECONDS:
                    entry.found = read()
                    entry.at, entry.seen = self._clock(), changes
                found: Found = entry.found
                return found
        finally:
            self._places.release()

    def forget(self, key: Hashable) -> None:
        """Have the list read again at the next request: what it shows was changed."""
        entry = self._entry(key)
        with self._lock:
            entry.changes += 1

    def _entry(self, key: Hashable) -> _Entry:
        with self._lock:
            return self._entries.setdefault(key, _Entry())
