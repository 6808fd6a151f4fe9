"""The decisions that a migration returns for an event. A decision is data; the runtime carries it out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Skip:
    """The event needs no change. The ledger counts skips by `reason`, so use a few fixed phrases."""

    reason: str


class Change(NamedTuple):
    """The row with this key may need a write. The guard in `apply` decides.

    `key` is the value of the key column, or a tuple of values. `values` has whatever else `apply` needs.
    """

    key: Hashable
    values: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The event cannot be handled and is kept for an operator. `reason` must not quote values of the row."""

    reason: str


Decision = Skip | Change | DeadLetter

TOMBSTONE: Final = "tombstone"
"""The reason for a record without a value, which is only for compaction: the delete event came before it."""
