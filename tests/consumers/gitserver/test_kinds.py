"""Moves every kind of repository there and back: it arrives completely, or is refused by name and unchanged."""

from __future__ import annotations

import pytest

from consumers.gitserver import worker
from tests.consumers.gitserver.comparing import make_all, wrong
from tests.consumers.gitserver.driver import NAMES, World, drive, open_to_owners
from tests.consumers.gitserver.kinds import KINDS, MARK

pytestmark = pytest.mark.stack


@pytest.mark.long
def test_each_kind_is_moved_completely_or_refused_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(KINDS) >= 60
    # Many are refused in a row, which would throttle the rest.
    monkeypatch.setattr(worker, "_SLOW_SECONDS", 0.01)
    open_to_owners(world.disks.directory)
    kinds = dict(zip(NAMES, KINDS.values(), strict=False))
    before = make_all(world, kinds)

    drive(world.settings, seconds=200)
    found = list(wrong(world, kinds, before, forward=True))
    world.new_run()
    drive(world.with_options(direction="reverse"))
    found += wrong(world, kinds, before, forward=False)

    assert found == []
    assert not (world.disks.directory.parent / MARK).exists()
