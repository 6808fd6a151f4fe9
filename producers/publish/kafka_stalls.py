"""Detects when Kafka keeps a producer waiting: logs the operation, and counts it for Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from infra.service import log, metrics
from infra.service.service_state import KAFKA, THIS
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Patience:
    """Times in seconds: how long a call may take, how often that is looked at, and when it is logged again."""

    stall: float = 1.0
    """Longer is a stall: with three brokers a transaction takes milliseconds, a leader change some hundred."""
    look: float = 0.25
    again: float = 10.0


_USUAL: Final = Patience()


class Stalls:
    """Watches the calls of one producer, one at a time, from its own thread: a call into librdkafka may hang.

    `client` is its transactional id.
    """

    def __init__(self, client: str, patience: Patience = _USUAL) -> None:
        self._client = client
        self._patience = patience
        self._log = log.get(transactional_id=client)
        self._call: tuple[str, float] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name=f"stalls of {client}", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Watch the block, which waits for Kafka to do `what`, such as "commit a transaction"."""
        began = time.monotonic()
        self._call = (what, began)
        try:
            yield
        finally:
            self._call = None
            seconds = time.monotonic() - began
            if seconds > self._patience.stall:
                THIS.back(KAFKA)
                metrics.STALLS.labels(self._client).inc()
                metrics.STALLED.labels(self._client).inc(seconds)
                self._log.warning("Kafka kept the producer waiting", to=what, seconds=round(seconds, 1))

    def _watch(self) -> None:
        logged: tuple[str, float] | None = None
        due = 0.0
        while not self._closed.wait(self._patience.look):
            call, now = self._call, time.monotonic()
            if call is None or now < call[1] + self._patience.stall or (call == logged and now < due):
                continue
            logged, due = call, now + self._patience.again
            self._log.warning("waiting for Kafka", to=call[0], seconds=round(now - call[1], 1))
            THIS.away(KAFKA, f"a call to {call[0]} waits")
            if self._call is not call:  # it ended meanwhile, perhaps before the line above
                THIS.back(KAFKA)
