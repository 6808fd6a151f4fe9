"""Plants some of the fixed faults: the kinds of repositories show them. `make faults` plants all."""

from __future__ import annotations

import pytest

from tests.consumers.gitserver.driver import World
from tests.consumers.gitserver.faults import FAULTS, shown
from tests.consumers.gitserver.kinds import KINDS

pytestmark = pytest.mark.stack


@pytest.mark.long
@pytest.mark.parametrize("name", ["copies_are_not_proven", "a_head_has_to_lead_to_a_file"])
def test_planted_fault_shows_in_each_of_its_kinds(world: World, name: str) -> None:
    fault = FAULTS[name]
    assert {kind for kind, what in shown(world, fault).items() if what} == set(fault.kinds)


def test_faults_refer_to_existing_kinds() -> None:
    assert {kind for fault in FAULTS.values() for kind in fault.kinds} <= KINDS.keys()
