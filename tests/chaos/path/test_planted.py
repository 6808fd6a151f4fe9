"""The short form of `make chaos`: a round of some seconds, in which no promise may be broken.

`make chaos PLANTED=all` shows that the same rounds find each planted violation.
"""

from __future__ import annotations

import pytest

from tests.chaos.path.build import VIOLATIONS
from tests.chaos.path.planted import DISTURBED, catch

pytestmark = pytest.mark.stack


def test_round_without_a_violation_breaks_no_promise() -> None:
    caught = catch(None, seed=1, brokers=1, seconds=4.0)
    assert caught.verdict is None, caught.verdict


def test_each_violation_names_the_faults_that_bring_it_to_light() -> None:
    assert DISTURBED.keys() == VIOLATIONS.keys()
