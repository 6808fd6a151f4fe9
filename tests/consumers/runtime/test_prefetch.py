"""Prefetches one item while the current one is in use, and no more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from consumers.runtime.prefetch import Ahead


@pytest.fixture
def ahead() -> Iterator[Ahead]:
    with contextlib.closing(Ahead("test")) as made:
        yield made


def test_prefetch_yields_all_items_in_order(ahead: Ahead) -> None:
    assert list(ahead.of(iter(range(100)))) == list(range(100))
    assert list(ahead.of(iter(()))) == []


def test_prefetch_fetches_next_item_while_current_is_in_use(ahead: Ahead) -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    taken = ahead.of(items())
    assert next(taken) == 1
    assert second.wait(180)
    assert list(taken) == [2]


def test_prefetch_raises_exception_in_place_of_item(ahead: Ahead) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    taken = ahead.of(items())
    assert next(taken) == 1
    with pytest.raises(ZeroDivisionError):
        next(taken)


def test_closing_prefetch_waits_for_running_fetch_and_starts_none(ahead: Ahead) -> None:
    begun, go_on, made = threading.Event(), threading.Event(), []

    def items() -> Iterator[int]:
        for number in range(10):
            if number == 1:
                begun.set()
                assert go_on.wait(180)
            made.append(number)
            yield number

    taken = ahead.of(items())
    assert next(taken) == 0
    assert begun.wait(180)
    threading.Timer(0.05, go_on.set).start()
    taken.close()
    assert made == [0, 1]
    assert list(ahead.of(iter("ab"))) == ["a", "b"]


def test_resting_prefetch_finishes_running_fetch_and_starts_none(ahead: Ahead) -> None:
    ahead.rest()
    begun, go_on, made = threading.Event(), threading.Event(), []

    def items() -> Iterator[int]:
        for number in range(3):
            if number == 1:
                begun.set()
                assert go_on.wait(180)
            made.append(number)
            yield number

    with contextlib.closing(ahead.of(items())) as taken:
        assert next(taken) == 0
        assert begun.wait(180)
        threading.Timer(0.05, go_on.set).start()
        ahead.rest()
        assert made == [0, 1]
        assert list(taken) == [1, 2]
    ahead.rest()
