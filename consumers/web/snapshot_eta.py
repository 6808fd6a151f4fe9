"""Estimates when the snapshot of a source is done, from the chunks of the last minute."""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW_SECONDS: Final = 60.0


class SnapshotEta:
    """What was seen of the snapshots in progress, as long as someone watches."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def estimate(self, source: str, at: float, chunks_done: int, chunks: int) -> float | None:
        """Return the seconds until all `chunks` are done; None as long as none was done within the last minute.

        `at` is in seconds, by any clock that never goes back.
        """
        seen = self._seen.setdefault(source, deque())
        if seen and chunks_done < seen[-1][1]:
            seen.clear()  # another snapshot
        seen.append((at, chunks_done))
        while at - seen[0][0] > _WINDOW_SECONDS:
            seen.popleft()
        since, before = seen[0]
        done = chunks_done - before
        return round((chunks - chunks_done) * (at - since) / done, 1) if done else None

    def forget(self, source: str) -> None:
        """Forget what was seen of a source whose snapshots are done."""
        self._seen.pop(source, None)
