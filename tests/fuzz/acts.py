"""What happens in a round, as data: transactions of the application, and what is done to the producer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ending(Enum):
    """How a transaction ends."""

    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
    PREPARE = "PREPARE TRANSACTION"
    """And is committed later, with what comes after it in between."""
    ALONE = ""
    """Each statement commits by itself."""


@dataclass(frozen=True)
class Act:
    """A transaction, or (without statements) something done to the producer: see `rounds.Round`.

    `justifies` are regular expressions: a table that is stopped for a reason that has one of them is stopped rightly,
    once the act has happened. `table` is the one that it is about, None: any.
    """

    what: str
    statements: tuple[str, ...] = ()
    ending: Ending = Ending.COMMIT
    table: str | None = None
    justifies: tuple[str, ...] = ()


START = Act("start the producer")
STOP = Act("stop the producer")
KILL = Act("kill the producer")
CATCH_UP = Act("let it catch up")
