"""The short form of `make chaos`: a round of some seconds, in which no promise is broken.

`make chaos PLANTED=all` shows that the same rounds find each violation that is planted.
"""

from __future__ import annotations

import pytest

from tests.chaos.path.build import VIOLATIONS
from tests.chaos.path.planted import DISTURBED, catch

pytestmark = pytest.mark.stack


def test_a_round_in_which_nothing_is_planted_keeps_every_promise() -> None:
    caught = catch(None, seed=1, brokers=1, seconds=4.0)
    assert caught.verdict is None, caught.verdict


def test_each_violation_says_what_brings_it_to_light() -> None:
    assert DISTURBED.keys() == VIOLATIONS.keys()
