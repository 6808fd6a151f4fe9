"""Detects when Kafka keeps a producer waiting: logs the operation, and counts it for Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from infra.service import log, metrics

STALL_SECONDS: Final = 1.0
"""Longer is a stall: with three brokers a transaction takes milliseconds, a leader change some hundred."""

_LOOK_SECONDS: Final = 0.25
_AGAIN_SECONDS: Final = 10.0


class Stalls:
    """Watches the calls of one producer, one at a time, from its own thread: a call into librdkafka may hang.

    `client` is its transactional id.
    """

    def __init__(self, client: str) -> None:
        self._client = client
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
            if seconds > STALL_SECONDS:
                metrics.STALLS.labels(self._client).inc()
                metrics.STALLED.labels(self._client).inc(seconds)
                self._log.warning("Kafka kept the producer waiting", to=what, seconds=round(seconds, 1))

    def _watch(self) -> None:
        logged: tuple[str, float] | None = None
        due = 0.0
        while not self._closed.wait(_LOOK_SECONDS):
            call, now = self._call, time.monotonic()
            if call is None or now < call[1] + STALL_SECONDS or (call == logged and now < due):
                continue
            logged, due = call, now + _AGAIN_SECONDS
            self._log.warning("waiting for Kafka", to=call[0], seconds=round(now - call[1], 1))
