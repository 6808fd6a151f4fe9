"""A session that begins a chunk only once the last one was read and added, so that a test can act in between."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, cast

from producers.session.copy_phase import Workers
from producers.session.loop import Parts, Session, Timing


class _OneByOne:
    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    @property
    def idle(self) -> bool:
        return not self._workers.busy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)


class ChunkByChunk(Session):
    """Subclasses act in `_add`."""

    def __init__(self, parts: Parts, stop: threading.Event, timing: Timing) -> None:
        super().__init__(replace(parts, workers=cast(Workers, _OneByOne(parts.workers))), stop, timing)
