"""The counts of a consumer since its start, and their callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from consumers.ledger.progress import Place
from schemas.positions import Offset


@dataclass(slots=True)
class Totals:
    """The counts since this consumer started; `skipped` includes changes whose row was already up to date."""

    events: int = 0
    applied: int = 0
    skipped: int = 0
    dead_letters: int = 0
    transactions: int = 0


Report = Callable[[Totals, Mapping[Place, Offset]], None]
"""Called periodically with the totals and the positions of the consumer's partitions."""
