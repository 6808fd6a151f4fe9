"""HTTP that ends the connections of clients that neither finish a request nor read the response.

uvicorn alone waits for them for ever, and its number of connections is limited: a few dozen such clients would shut
everyone else out.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_PATIENCE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 5.0


class ImpatientProtocol(H11Protocol):
    """One connection; however long the application takes for a request, its client is not to blame."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at: object = None
        self._since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the client."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now = self.loop.time()
        if not self._waits_for_client or self.cycle is not self._looked_at:
            self._looked_at, self._since = self.cycle, now
        elif now - self._since >= _PATIENCE_SECONDS:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    @property
    def _waits_for_client(self) -> bool:
        """Whether it waits for a request or the rest of one, or until the client reads."""
        unfinished = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return unfinished or self.flow.write_paused or self.transport.is_closing()
