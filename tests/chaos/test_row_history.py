"""`row_history` finds each way in which a topic may differ from the committed changes."""

from __future__ import annotations

import pytest

from tests.chaos.row_history import Change, History, differences

FIRST, SECOND = Change("c", 1, '{"id": 1}'), Change("d", 1, None)
COMMITTED: History = {7: [FIRST, SECOND], 9: [FIRST]}


def test_equal_histories_have_no_difference() -> None:
    assert not list(differences(COMMITTED, {9: [FIRST], 7: [FIRST, SECOND]}))


@pytest.mark.parametrize(
    "topic",
    [
        {7: [FIRST, SECOND]},
        {7: [FIRST], 9: [FIRST]},
        {7: [FIRST, SECOND], 9: [FIRST, FIRST]},
        {7: [SECOND, FIRST], 9: [FIRST]},
        {7: [FIRST, SECOND], 9: [Change("c", 1, '{"id": 2}')]},
        {7: [FIRST, SECOND], 9: [FIRST], 8: [FIRST]},
    ],
    ids=["a transaction lost", "a change lost", "doubled", "out of order", "another row", "never committed"],
)
def test_difference_is_found(topic: History) -> None:
    assert len(list(differences(COMMITTED, topic))) == 1
