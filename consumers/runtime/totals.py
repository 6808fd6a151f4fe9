"""What a member did, as it tells whoever started it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from consumers.ledger.progress import Place
from schemas.positions import Offset


@dataclass(slots=True)
class Totals:
    """What this member did since it started; `skipped` includes changes that found their row right already."""

    events: int = 0
    applied: int = 0
    skipped: int = 0
    parked: int = 0
    transactions: int = 0


Report = Callable[[Totals, Mapping[Place, Offset]], None]
"""Called now and then with the totals and where the ledger stands in the member's partitions."""
