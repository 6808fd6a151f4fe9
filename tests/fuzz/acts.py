"""The acts of a round, as data: transactions of the application, and actions on the producer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ending(Enum):
    """How a transaction ends."""

    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
    PREPARE = "PREPARE TRANSACTION"
    """Prepared now and committed later, with other acts in between."""
    ALONE = ""
    """Each statement commits by itself."""


@dataclass(frozen=True)
class Act:
    """A transaction, or (without statements) an action on the producer: see `rounds.Round`.

    `justifies` are patterns (see `reasons`): once the act has happened, `table` (None: any) may be stopped, or a start
    refused, for a reason that matches one of them, and for no other. `repairs` are statements with which the
    application then repairs the table. `unwritable`: PostgreSQL may refuse writes to the table while it is published.
    """

    what: str
    statements: tuple[str, ...] = ()
    ending: Ending = Ending.COMMIT
    table: str | None = None
    justifies: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    unwritable: bool = False


START = Act("start the producer")
STOP = Act("stop the producer")
KILL = Act("kill the producer")
RESTART = Act("kill the producer if it runs, and start it again")
CATCH_UP = Act("let it catch up")
BEGIN = Act("let it start reading")
"""No table has been copied by then, so that writes right after it happen during the snapshot."""
PASS = Act("let the stream catch up")
"""Unlike CATCH_UP, does not wait for tables to be copied."""
