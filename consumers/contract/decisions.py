"""What a migration wants for one event. A decision is data: it is made purely, and carried out elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Skip:
    """The event needs nothing. `reason` is counted in the ledger: keep it one of a few fixed phrases."""

    reason: str


class Change(NamedTuple):
    """The row with this key may have to be written; whether it is, the guard in the write decides.

    `key` is the value of the key column, or a tuple of values. `values` is whatever else `apply` needs.
    """

    key: Hashable
    values: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Park:
    """The event cannot be handled and is kept for a person. `reason` must not quote values of the row."""

    reason: str


Decision = Skip | Change | Park

TOMBSTONE: Final = "tombstone"
"""The reason of a record without a value: it is for the compaction, the delete came before it."""
