"""What becomes of an error while events are applied: one table, from the error to what is done and what to do.

The first row that matches counts. What no row knows stops the consumer: its position is safe in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import psycopg

from consumers.fence import Failed, Paused, RunReplaced
from consumers.ledger import LedgerMoved
from schemas.errors import DatabaseUnavailable, HeadraceError, OwnershipMoved, Unavailable


class Action(Enum):
    """What the runtime does."""

    RETRY = "retry"
    """The same transaction again, after a pause that grows."""
    RECONNECT = "reconnect"
    """A new connection, then on from where the ledger stands: whether a commit arrived is not known otherwise."""
    REPOSITION = "reposition"
    """On from where the ledger stands, over the same connection."""
    HOLD = "hold"
    """Wait, staying in the group, until the reason is gone."""
    SPLIT = "split"
    """The transaction in halves, down to the one event that fails; that one is parked."""
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: `match` is an exception class or the beginning of an SQLSTATE; None matches a lost connection."""

    match: type[BaseException] | str | None
    action: Action
    what: str
    hint: str


_GONE: Final = "nothing to do unless it goes on; the position is safe in the ledger"

TABLE: Final[tuple[Rule, ...]] = (
    Rule(LedgerMoved, Action.REPOSITION, "the partition moved to another member", "nothing to do"),
    Rule(RunReplaced, Action.REPOSITION, "a replay began a new run", "nothing to do"),
    Rule(Paused, Action.HOLD, "paused by an operator", "go on with `headrace resume`"),
    Rule(Failed, Action.HOLD, "the migration has failed", "correct the cause, then `headrace resume`"),
    Rule(OwnershipMoved, Action.STOP, "the gitlab schema belongs to another database", "see headrace status"),
    Rule(DatabaseUnavailable, Action.RECONNECT, "the database does not answer", _GONE),
    Rule(Unavailable, Action.RETRY, "a server does not answer", _GONE),
    Rule("40P01", Action.RETRY, "a deadlock", "the other side should lock rows in the order of their key"),
    Rule("40001", Action.RETRY, "a serialization failure", "nothing to do"),
    Rule("55P03", Action.RETRY, "a lock was not granted in time", "look for a long transaction in pg_locks"),
    Rule("57014", Action.RETRY, "a statement took too long", "lower sub_batch_size or raise statement_timeout"),
    Rule("25006", Action.RECONNECT, "the server is read-only", "point the dsn to the primary"),
    Rule("53100", Action.RETRY, "the server's disk is full", "free space on the database server"),
    Rule("53", Action.RETRY, "the server is out of resources", "see connections and memory of the server"),
    Rule("08", Action.RECONNECT, "the connection was lost", _GONE),
    Rule("57P", Action.RECONNECT, "the server is restarting", _GONE),
    Rule("23", Action.SPLIT, "a constraint forbids it", "see `headrace parked list`"),
    Rule("22", Action.SPLIT, "a value does not fit", "see `headrace parked list`"),
    Rule("P0", Action.SPLIT, "a trigger or function refused it", "see `headrace parked list`"),
    Rule("54", Action.SPLIT, "a limit of the server forbids it, as an index's", "see `headrace parked list`"),
    Rule("44", Action.SPLIT, "a view's check option forbids it", "see `headrace parked list`"),
    Rule("42501", Action.STOP, "the role lacks a right", "grant it: `headrace init --sql` prints what is needed"),
    Rule("42", Action.STOP, "the database does not have what the migration writes", "compare the schema's version"),
    Rule(None, Action.RECONNECT, "the connection was lost", _GONE),
)

_STOP: Final = Rule(Exception, Action.STOP, "an error that nothing is known about", "look at the log")


TIMEOUTS: Final = frozenset(("55P03", "57014"))
"""What is tried again with fewer rows: waiting for a lock, or the statement, took too long."""


def timed_out(error: BaseException) -> bool:
    """Whether fewer rows at a time may help."""
    return isinstance(error, psycopg.Error) and error.sqlstate in TIMEOUTS


def rule_for(error: BaseException) -> Rule:
    """Return the row of the table for `error`."""
    sqlstate = error.sqlstate if isinstance(error, psycopg.Error) else None
    lost = isinstance(error, psycopg.OperationalError) and sqlstate is None
    for rule in TABLE:
        if isinstance(rule.match, str):
            if sqlstate is not None and sqlstate.startswith(rule.match):
                return rule
        elif rule.match is None:
            if lost:
                return rule
        elif isinstance(error, rule.match):
            return rule
    return _STOP


def reason_of(error: psycopg.Error) -> str:
    """Say what refused a change, without the values that PostgreSQL's own message and detail may quote."""
    place = [
        f"{label} {name}"
        for label, name in (
            ("constraint", error.diag.constraint_name),
            ("table", error.diag.table_name),
            ("column", error.diag.column_name),
        )
        if name
    ]
    return " ".join([f"{error.sqlstate} {type(error).__name__}", *place])


def stopped(error: BaseException, rule: Rule, database: str) -> HeadraceError:
    """Return the error to end with, one line; headrace's own errors stay as they are."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, psycopg.Error):
        described = " ".join((reason_of(error), *getattr(error, "__notes__", ())))
        return HeadraceError(f"database {database}: {rule.what}: {described}", remedy=rule.hint)
    return HeadraceError(f"{rule.what}: {type(error).__name__}", remedy=rule.hint)
