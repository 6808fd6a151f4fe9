"""A small round of tests/chaos/readers.py, which has to pass correct readers and detect wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from infra.stack import Stack
from tests.chaos.readers import Judged, Push, Span, Story, judge, play
from tests.readers import READERS

_WRONG = ("ignoring", "late")


@pytest.fixture(scope="module")
def played(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return play(stack, tmp_path_factory.mktemp("readers"), 1, repositories=10, kills=3, wrong=_WRONG)


@pytest.mark.long
@pytest.mark.stack
@pytest.mark.parametrize("reader", READERS)
def test_reader_never_fails_while_repositories_move_under_kills(played: Mapping[str, Any], reader: str) -> None:
    if reader in played["missing"]:
        pytest.skip(played["missing"][reader])
    assert played["kills"] >= 3
    assert played[reader]["in_moves"] > 0
    assert played[reader]["failed"] == 0


@pytest.mark.stack
@pytest.mark.long
@pytest.mark.parametrize("reader", _WRONG)
def test_reader_that_ignores_the_cursors_is_detected(played: Mapping[str, Any], reader: str) -> None:
    assert played[reader]["failed"] > 0


def _judged(**read: Any) -> Judged:
    name = "github.com/a/b"
    pushes = [Push(1, "old", 10.0, 11.0), Push(2, "new", 30.0, 31.0)]
    story = Story({name: pushes}, unsure={name: [Span(15.0, 20.0)]}, moves={name: [Span(15.0, 28.0)]})
    line = {"name": name, "began": read["asked"], "ended": read["asked"] + 1, "tried": ["x"], "error": "", **read}
    return judge(story, iter([line]), grace=3.0)


@pytest.mark.parametrize(
    ("asked", "value", "failures"),
    [
        (12.0, "1", 0),
        (12.0, "0", 1),
        (10.5, "0", 0),  # its push was not accepted yet
        (16.0, "0", 0),  # readers were being redirected: a late push may not have been copied yet
        (25.0, "0", 0),
        (29.0, "0", 1),  # the move has ended
        (32.0, "2", 0),
        (32.0, "1", 1),
        (30.5, "1", 0),
    ],
)
def test_read_must_show_pushes_to_the_home_that_readers_were_sent_to(asked: float, value: str, failures: int) -> None:
    assert len(_judged(asked=asked, value=value).failures) == failures


def test_failed_read_counts_unless_the_machine_suspended_the_reader() -> None:
    assert len(_judged(asked=12.0, value="", error="no such repository").failures) == 1
    assert _judged(asked=12.0, ended=14.0, value="", error="no such repository").stalled == 1


def test_read_with_old_cursors_is_counted_as_old() -> None:
    assert _judged(asked=12.0, began=13.0, ended=13.1, value="1").old == 0
    assert _judged(asked=12.0, began=14.0, ended=14.1, value="1").old == 1


def test_read_counts_as_during_a_move_if_they_overlap() -> None:
    assert [_judged(asked=asked, value="9").in_moves for asked in (13.0, 14.5, 20.0, 28.5)] == [0, 1, 1, 0]
