"""Takes all steps of a generator at once."""

from __future__ import annotations

from typing import TypeVar

from consumers.contract.external import Pace
from consumers.repositories.git import Steps

T = TypeVar("T")


def result(steps: Steps[T]) -> T:
    """Take all steps and return the result."""
    while True:
        try:
            assert next(steps) is Pace.BUSY
        except StopIteration as end:
            value: T = end.value
            return value
