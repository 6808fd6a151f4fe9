"""A wait ends with the condition, or fails with what a reader needs to know."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.testing.waiting import until


def counting(error: type[Exception] | None = None, fails: int = 0) -> Callable[[], int]:
    """A function that counts its calls, the first `fails` of which raise."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        if error is not None and calls <= fails:
            raise error(f"call {calls}")
        return calls

    return count


def test_wait_returns_what_the_condition_found() -> None:
    calls = counting()
    assert until(lambda: [] if calls() < 3 else ["row"], "a row", meanwhile=bool) == ["row"]
    assert calls() == 4


def test_wait_looks_once_even_without_time() -> None:
    assert until(lambda: True, "nothing", seconds=0)


def test_failed_wait_names_what_was_awaited_and_what_was_seen() -> None:
    with pytest.raises(AssertionError) as failed:
        until(list, "a row", seconds=0)
    assert str(failed.value) == "timed out after 0 s: a row\nlast seen: []"


def test_failed_wait_shows_the_state_that_it_is_given() -> None:
    with pytest.raises(AssertionError, match=r"last seen: the log$"):
        until(lambda: False, "a row", seconds=0, seen=lambda: "the log")


def test_failed_wait_shows_the_operands_of_comparisons() -> None:
    rows, wanted = [1, 2], {"id": 3}
    with pytest.raises(AssertionError) as failed:
        until(
            lambda: len(rows) == 3
            and rows[-1] == wanted["id"],
            "a third row",
            seconds=0,
        )  # fmt: skip
    assert str(failed.value).splitlines()[2:] == ["  len(rows) = 2", "  rows[-1] = 2", "  wanted['id'] = 3"]


def test_failed_wait_shows_operands_bound_as_defaults() -> None:
    with pytest.raises(AssertionError, match=r"\n  key = 1$"):
        until(lambda key=1: "äö"[key] and key == 2, "a key", seconds=0)  # type: ignore[misc]


def test_failed_wait_shows_the_exception_that_it_suppressed() -> None:
    with pytest.raises(AssertionError, match="suppressed: LookupError: call 1") as failed:
        until(counting(LookupError, fails=1), "an answer", seconds=0, passing=LookupError)
    assert isinstance(failed.value.__cause__, LookupError)


def test_wait_continues_after_an_exception_that_passes() -> None:
    assert until(counting(LookupError, fails=2), "an answer", passing=LookupError, meanwhile=bool) == 3


def test_wait_raises_any_other_exception_at_once() -> None:
    calls = counting(ValueError, fails=1)
    with pytest.raises(ValueError, match="call 1"):
        until(calls, "an answer", passing=LookupError)
    assert calls() == 2
