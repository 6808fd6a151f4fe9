"""Samples the WAL that a slot retains during some work; and generates WAL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import psycopg

_EVERY_SECONDS: Final = 0.05
_JOIN_SECONDS: Final = 60.0
_RETAINED: Final = """
    SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::bigint,
           pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
      FROM pg_replication_slots WHERE slot_name = %s
"""


@dataclass(frozen=True, slots=True)
class Retained:
    """The maximum bytes retained at any sample, the bytes of WAL written meanwhile, and the number of samples."""

    most: int
    written: int
    looks: int

    def __str__(self) -> str:
        return (
            f"at most {self.most / 2**20:,.0f} MiB, of {self.written / 2**20:,.0f} MiB written ({self.looks} samples)"
        )


class _Thread:
    """A thread that works over its own connection until the block ends, which raises its error."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)
        if self._error is not None and error is None:
            raise self._error

    def _guarded(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                self._work(connection)
        except BaseException as error:
            self._error = error

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        raise NotImplementedError


class Retention(_Thread):
    """Samples a slot, which need not exist yet."""

    def __init__(self, dsn: str, slot: str) -> None:
        super().__init__(dsn)
        self._slot = slot
        self._most = self._looks = 0
        self._first: int | None = None
        self._last = 0

    @property
    def found(self) -> Retained:
        """The result so far."""
        return Retained(self._most, self._last - (self._first or self._last), self._looks)

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            row = connection.execute(_RETAINED, (self._slot,)).fetchone()
            if row is None or row[0] is None:
                continue
            self._most = max(self._most, row[0])
            self._first = row[1] if self._first is None else self._first
            self._last = row[1]
            self._looks += 1


class Load(_Thread):
    """Calls `write` with a connection and a count from 0, `rate` times per second, or as often as possible."""

    def __init__(
        self, dsn: str, write: Callable[[psycopg.Connection[Any], int], object], rate: float | None = None
    ) -> None:
        super().__init__(dsn)
        self._write = write
        self._pause = 1 / rate if rate else 0.0

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        began, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, began + number * self._pause - time.monotonic()) if self._pause else 0):
            self._write(connection, number)
            number += 1
