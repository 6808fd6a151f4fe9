"""Positions: LSNs of PostgreSQL, offsets of Kafka, and the order of events.

An event's own LSN does not order events, since transactions interleave in WAL and are decoded in commit order.
`Position` does: the LSN of the commit, then the ordinal of the change in its transaction.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NewType

Lsn = NewType("Lsn", int)
"""A 64-bit position in PostgreSQL's WAL, in bytes."""

Offset = NewType("Offset", int)
"""A record's position in a Kafka partition."""


class Position(NamedTuple):
    """The position of one change in the order of one source's events.

    `commit_lsn` is the LSN of its transaction's commit record, `ordinal` counts the transaction's changes
    from 0. Tuples compare as events are ordered.
    """

    commit_lsn: Lsn
    ordinal: int

    def __str__(self) -> str:
        return f"{format_lsn(self.commit_lsn)}+{self.ordinal}"


_HALF: Final = re.compile(r"[0-9A-Fa-f]{1,8}").fullmatch


def format_lsn(lsn: int) -> str:
    """Return `lsn` as PostgreSQL prints it, such as `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> Lsn:
    """Return the number of an LSN such as `16/B374D848`.

    Raises ValueError, with the text, if it is not an LSN.
    """
    high, slash, low = text.partition("/")
    try:
        if not slash or not _HALF(high) or not _HALF(low):
            raise ValueError
        return Lsn((int(high, 16) << 32) | int(low, 16))
    except ValueError:
        raise ValueError(f"not an LSN: {text!r}; expected a form like 16/B374D848") from None
