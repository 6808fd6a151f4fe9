"""What becomes of an error while events are applied: one table, from the error to what is done and what to do.

The first row that matches counts, and each class of PostgreSQL's SQLSTATEs has one. What no row knows stops the
consumer: its position is safe in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import psycopg

from consumers.ledger.fence import Failed, Paused, RunReplaced
from consumers.ledger.progress import LedgerMoved
from infra.postgres.connect import hidden_rows, one_line
from schemas.errors import DatabaseUnavailable, HeadraceError, OwnershipMoved, Unavailable


class Action(Enum):
    """What the runtime does."""

    RETRY = "retry"
    """The same transaction again, after a pause that grows; see Rule.tries."""
    RECONNECT = "reconnect"
    """A new connection, then on from where the ledger stands: whether a commit arrived is not known otherwise."""
    REPOSITION = "reposition"
    """On from where the ledger stands, over the same connection."""
    HOLD = "hold"
    """Wait, staying in the group, until the reason is gone."""
    SPLIT = "split"
    """The transaction in halves, down to the one change that fails; that one is parked."""
    DOUBT = "doubt"
    """As SPLIT; but the change is parked only if the same statement works for another row, else STOP (failing_rows)."""
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: `match` is an exception class or the beginning of an SQLSTATE; None matches a lost connection.

    `source` is the function of the server that has to have raised it, `severity` the error's severity: they tell a
    condition of the server from code of the database that raises the same SQLSTATE. With `tries`, a change that has
    failed alone so many times is parked; without, it is tried again for as long as it takes.
    """

    match: type[BaseException] | str | None
    action: Action
    what: str
    hint: str
    tries: int | None = None
    source: str | None = None
    severity: str | None = None


_GONE: Final = "nothing to do unless it goes on; the position is safe in the ledger"
_LISTED: Final = "see `headrace parked list`"
_SCHEMA: Final = (
    "compare the table, its triggers and the migration's SQL; write every name with its schema: headrace searches none,"
    " also for a trigger's function, which takes `ALTER FUNCTION … SET search_path`, or databases.NAME.search_path"
)

TABLE: Final[tuple[Rule, ...]] = (
    # headrace's own.
    Rule(LedgerMoved, Action.REPOSITION, "the partition moved to another member", "nothing to do"),
    Rule(RunReplaced, Action.REPOSITION, "a replay began a new run", "nothing to do"),
    Rule(Paused, Action.HOLD, "paused by an operator", "go on with `headrace resume`"),
    Rule(Failed, Action.HOLD, "the migration has failed", "correct the cause, then `headrace resume`"),
    Rule(OwnershipMoved, Action.STOP, "the gitlab schema belongs to another database", "see headrace status"),
    Rule(DatabaseUnavailable, Action.RECONNECT, "the database does not answer", _GONE),
    Rule(Unavailable, Action.RETRY, "a server does not answer", _GONE),
    # What passes by itself, mostly: a row for which it does not is parked.
    Rule("40P01", Action.RETRY, "a deadlock", "the other side should lock rows in the order of their key", tries=6),
    Rule("40001", Action.RETRY, "a serialization failure", "see default_transaction_isolation of the role", tries=6),
    Rule("40", Action.RETRY, "the server rolled the transaction back", "look at the server's log", tries=6),
    Rule("57014", Action.RETRY, "a statement took too long", "raise statement_timeout for the role", tries=4),
    Rule("25P04", Action.RETRY, "a transaction took too long", "raise transaction_timeout for the role", tries=4),
    Rule("72", Action.RETRY, "a snapshot was too old", "raise old_snapshot_threshold", tries=4),
    # What is the row's: refused by the table, by its types, or by code of the database.
    Rule("23", Action.SPLIT, "a constraint forbids it", _LISTED),
    Rule("22", Action.SPLIT, "a value does not fit", _LISTED),
    Rule("P0", Action.SPLIT, "a trigger or function refused it", _LISTED),
    Rule("", Action.SPLIT, "a trigger or function refused it", _LISTED, source="exec_stmt_raise"),
    Rule("54", Action.SPLIT, "a limit of the server forbids it, as an index's", _LISTED),
    Rule("44", Action.SPLIT, "a view's check option forbids it", _LISTED),
    Rule("21", Action.SPLIT, "a statement met a row twice, or more rows than one", _LISTED),
    Rule("02", Action.SPLIT, "a function found no row", _LISTED),
    Rule("09", Action.SPLIT, "a triggered action failed", _LISTED),
    Rule("20", Action.SPLIT, "a CASE of a function had no branch for it", _LISTED),
    Rule("27", Action.SPLIT, "a trigger changed the row that was written", _LISTED),
    Rule("2F", Action.SPLIT, "a function refused it", _LISTED),
    Rule("38", Action.SPLIT, "a function in another language failed", _LISTED),
    Rule("39", Action.SPLIT, "a function was called wrongly, or returned what it must not", _LISTED),
    # The server's state: waited for, as long as it takes.
    Rule("55P03", Action.RETRY, "a lock was not granted in time", "look for a long transaction in pg_locks"),
    Rule("25006", Action.RECONNECT, "the server is read-only", "point the dsn to the primary"),
    Rule("25P03", Action.RECONNECT, "the session was idle in a transaction for too long", _GONE),
    Rule("53100", Action.RETRY, "the server's disk is full", "free space on the database server"),
    Rule("53", Action.RETRY, "the server is out of resources", "see connections and memory of the server"),
    Rule("08", Action.RETRY, "the database cannot reach another server", "see its foreign servers", severity="ERROR"),
    Rule("08", Action.RECONNECT, "the connection was lost", _GONE),
    Rule("57P", Action.RECONNECT, "the server is restarting", _GONE),
    Rule("57", Action.RETRY, "an operator intervened", "look at the server's log", tries=6),
    Rule(
        "0A000", Action.RECONNECT, "a table changed under a prepared statement", _GONE, source="RevalidateCachedQuery"
    ),
    Rule("26", Action.RECONNECT, "a prepared statement is gone", "let a pooler keep sessions; no DEALLOCATE in apply"),
    # The row's or the statement's: which one, other rows tell.
    Rule("42501", Action.STOP, "row security hides rows", "give the role BYPASSRLS", source="check_enable_rls"),
    Rule("42501", Action.DOUBT, "the role lacks a right", "grant it: `headrace init --sql` prints what is needed"),
    Rule("42", Action.DOUBT, "the database does not have what the migration writes", _SCHEMA),
    Rule("0A", Action.DOUBT, "the server cannot do that", _SCHEMA),
    Rule("3D", Action.DOUBT, "a database is not there", _SCHEMA),
    Rule("3F", Action.DOUBT, "a schema is not there", _SCHEMA),
    Rule("2B", Action.DOUBT, "something depends on what is taken away", _SCHEMA),
    Rule("55", Action.DOUBT, "an object is not in the state that this needs", "see the object that is named here"),
    Rule("HV", Action.DOUBT, "a foreign table failed", "see its foreign server"),
    Rule("58", Action.DOUBT, "the server met an error of its system", "look at the server's log and its disks"),
    Rule("XX", Action.DOUBT, "the server met an internal error", "look at its log: a table or index may be damaged"),
    Rule("F0", Action.DOUBT, "the server's configuration is wrong", "look at the server's log"),
    Rule("28", Action.DOUBT, "the server refuses the role", "see the dsn, pg_hba.conf and the foreign servers' users"),
    Rule("0L", Action.DOUBT, "a grant is not allowed", _SCHEMA),
    Rule("0P", Action.DOUBT, "a role is not there", _SCHEMA),
    Rule("03", Action.DOUBT, "a statement is not complete", _SCHEMA),
    Rule("0F", Action.DOUBT, "a large object is not there", _SCHEMA),
    Rule("0Z", Action.DOUBT, "a function asked for an error outside of a handler", _SCHEMA),
    Rule("10", Action.DOUBT, "an XQuery is wrong", _SCHEMA),
    Rule("24", Action.DOUBT, "a cursor is in the wrong state", _SCHEMA),
    Rule("34", Action.DOUBT, "a cursor is not there", _SCHEMA),
    Rule("0B", Action.DOUBT, "a transaction was begun where none may", "let apply keep its transaction"),
    Rule("25", Action.DOUBT, "the transaction is in the wrong state", "let apply keep its transaction"),
    Rule("2D", Action.DOUBT, "a transaction was ended where none may", "let apply keep its transaction"),
    Rule("3B", Action.DOUBT, "a savepoint is not there", "let apply keep its transaction"),
    # Any other code is the database's own: RAISE … USING ERRCODE, or an extension's.
    Rule("", Action.SPLIT, "a function of the database refused it, by a code of its own", _LISTED),
    # The driver's own errors, which have no SQLSTATE.
    Rule(psycopg.DataError, Action.SPLIT, "a value has no form in SQL", _LISTED),
    Rule(None, Action.RECONNECT, "the connection was lost", _GONE),
)
"""The SQLSTATE classes are PostgreSQL's (errcodes.txt); docs/running.md has this table in short."""

_STOP: Final = Rule(Exception, Action.STOP, "an error that nothing is known about", "look at the log")


TIMEOUTS: Final = frozenset(("55P03", "57014", "25P04"))
"""What is tried again with fewer rows: waiting for a lock, the statement or the transaction took too long."""


def locked(error: BaseException) -> bool:
    """Whether a lock was not granted in time."""
    return isinstance(error, psycopg.errors.LockNotAvailable)


def timed_out(error: BaseException) -> bool:
    """Whether fewer rows at a time may help."""
    return isinstance(error, psycopg.Error) and error.sqlstate in TIMEOUTS


def rule_for(error: BaseException) -> Rule:
    """Return the row of the table for `error`."""
    return next((rule for rule in TABLE if _matches(rule, error)), _STOP)


def _matches(rule: Rule, error: BaseException) -> bool:
    if isinstance(rule.match, type):
        return isinstance(error, rule.match)
    if not isinstance(error, psycopg.Error):
        return False
    if rule.match is None:
        return error.sqlstate is None and (isinstance(error, _LOST) or type(error) is psycopg.DatabaseError)
    return (
        error.sqlstate is not None
        and error.sqlstate.startswith(rule.match)
        and rule.source in (None, error.diag.source_function)
        and rule.severity in (None, error.diag.severity_nonlocalized)
    )


_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
"""What the driver raises where a connection ends, or was ended before; in a COPY it is a plain DatabaseError."""


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
    if (refused := hidden_rows(error)) is not None:
        return refused
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and error.diag.source_function == "aclcheck_error":
        # PostgreSQL's own words, not a trigger's: they name the object, and no value of a row.
        return HeadraceError(f"database {database}: {rule.what}: {one_line(error)}", remedy=rule.hint)
    if isinstance(error, psycopg.Error):
        described = " ".join((reason_of(error), *getattr(error, "__notes__", ())))
        return HeadraceError(f"database {database}: {rule.what}: {described}", remedy=rule.hint)
    return HeadraceError(f"{rule.what}: {type(error).__name__}", remedy=rule.hint)
