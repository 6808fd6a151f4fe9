"""Planning the next transaction while the database works on the present one.

Planning is pure Python, and a transaction is mostly waiting: with one core for each, the two overlap. How soon the
one gives way to the other is in interpreter.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Ahead:
    """A thread that is one item ahead of whoever takes them."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)

    def of(self, items: Iterator[T]) -> Generator[T, None, None]:
        """Yield `items`, each taken from them while the one before is in use.

        They are taken by one thread at a time, and what taking one raises is raised here. When the caller leaves off,
        the item under way is waited for, and `items` is left alone from then on.
        """
        following = self._thread.submit(next, items, None)
        try:
            while (item := following.result()) is not None:
                following = self._thread.submit(next, items, None)
                yield item
        finally:
            following.exception()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
