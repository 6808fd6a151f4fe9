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

    `justifies` are patterns (see `reasons`): once the act has happened, `table` (None: any) may be stopped, or a start
    refused, for a reason that is one of them, and for no other. `mends` are statements with which the application then
    puts the table right. `unwritable` says that PostgreSQL may refuse to write the table while it is published.
    """

    what: str
    statements: tuple[str, ...] = ()
    ending: Ending = Ending.COMMIT
    table: str | None = None
    justifies: tuple[str, ...] = ()
    mends: tuple[str, ...] = ()
    unwritable: bool = False


START = Act("start the producer")
STOP = Act("stop the producer")
KILL = Act("kill the producer")
RESTART = Act("kill the producer if it runs, and start it again")
CATCH_UP = Act("let it catch up")
BEGIN = Act("let it begin to read")
"""Until then nothing is copied: what is written at once after it is written while tables are."""
PASS = Act("let the stream pass")
"""Unlike CATCH_UP, no table has to be copied by then."""
