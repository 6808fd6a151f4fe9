"""The short form of `make chaos ONLY=visibility`: a synchronous standby that comes and goes, and everything killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import embedded_stack
from tests.chaos.visibility import play_for

pytestmark = pytest.mark.stack


@pytest.mark.long
def test_row_is_changed_once_by_the_transaction_that_passes_its_event_however_late_it_is_visible(
    tmp_path: Path,
) -> None:
    with embedded_stack(fsync=False) as own:  # a server of its own: its settings are changed for every session
        story = play_for(own, tmp_path, seed=1, seconds=20)
    assert story["kills"]["producer"] > 0
    assert story["kills"]["consumers"] > 0
