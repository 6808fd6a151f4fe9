"""Planning the next transaction while the database works on the present one.

Planning is pure Python, and a transaction is mostly waiting: with one core for each, the two overlap. How soon the
one gives way to the other is in process_tuning.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Ahead:
    """A thread that is one item ahead of whoever takes them."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._following: Future[Any] | None = None

    def of(self, items: Iterator[T]) -> Generator[T, None, None]:
        """Yield `items`, each taken from them while the one before is in use.

        They are taken by one thread at a time, and what taking one raises is raised here. When the caller leaves off,
        the item under way is waited for, and `items` is left alone from then on.
        """
        following = self._following = self._thread.submit(next, items, None)
        try:
            while (item := following.result()) is not None:
                following = self._following = self._thread.submit(next, items, None)
                yield item
        finally:
            following.exception()

    def rest(self) -> None:
        """Wait for the item under way, if any; none is begun until the caller takes the next one."""
        if self._following is not None:
            self._following.exception()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
