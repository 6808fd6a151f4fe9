"""Takes all steps of a generator at once."""

from __future__ import annotations

from typing import TypeVar

from consumers.moving.git import Steps
from consumers.outside import Pace

T = TypeVar("T")


def result(steps: Steps[T]) -> T:
    """Take all steps and return what comes out."""
    while True:
        try:
            assert next(steps) is Pace.BUSY
        except StopIteration as end:
            value: T = end.value
            return value
