"""Plans the next transaction while the database executes the current one.

Planning is pure Python and a transaction mostly waits, so on two cores they overlap. process_tuning.py sets how soon
one thread yields to the other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Ahead:
    """A thread that stays one item ahead of the caller."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._following: Future[Any] | None = None

    def of(self, items: Iterator[T]) -> Generator[T, None, None]:
        """Yield `items`, each fetched while the one before is in use.

        One thread at a time fetches them, and an exception is reraised here. When the caller stops iterating, this
        waits for the item being fetched, and fetches no more.
        """
        following = self._following = self._thread.submit(next, items, None)
        try:
            while (item := following.result()) is not None:
                following = self._following = self._thread.submit(next, items, None)
                yield item
        finally:
            following.exception()

    def rest(self) -> None:
        """Wait for the item being fetched, if any; the next fetch starts when the caller takes an item."""
        if self._following is not None:
            self._following.exception()

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()
