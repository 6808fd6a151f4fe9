"""The policy for errors while events are applied: a table from the error to an action and a hint.

The first matching row applies, and each class of PostgreSQL's SQLSTATEs has one. An unknown error stops the consumer;
its position is safe in the ledger.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import psycopg

from consumers.ledger.fence import Failed, Paused, RunReplaced
from consumers.ledger.progress import LedgerMoved
from infra.postgres.connect import hidden_rows, one_line
from schemas.errors import DatabaseUnavailable, HeadraceError, OwnershipMoved, Unavailable
from schemas.lazy_dataclass import dataclass


class Action(Enum):
    """The reaction of the runtime."""

    RETRY = "retry"
    """Retry the same transaction after a growing pause, indefinitely unless the rule limits that."""
    RECONNECT = "reconnect"
    """Reconnect and continue from the ledger, since it is unknown whether a commit succeeded."""
    REPOSITION = "reposition"
    """Continue from the ledger over the same connection."""
    HOLD = "hold"
    """Wait in the group until the reason is gone."""
    SPLIT = "split"
    """Bisect the transaction down to the failing change, which becomes a dead letter."""
    DOUBT = "doubt"
    """Like split, but without a dead letter unless the statement works for another row; else stop (failing_rows)."""
    STOP = "stop"
    """End the consumer with the error; its position is safe in the ledger."""


@dataclass(frozen=True)
class Rule:
    """One row: `match` is an exception class or the prefix of an SQLSTATE; None matches a lost connection.

    `source` is the server function that must have raised it, `severity` the error's severity: they distinguish a server
    condition from database code that raises the same SQLSTATE. With `tries`, a change that has failed alone that many
    times becomes a dead letter; without, it is retried indefinitely.
    """

    match: type[BaseException] | str | None
    action: Action
    what: str
    hint: str
    tries: int | None = None
    source: str | None = None
    severity: str | None = None


_GONE: Final = "nothing to do unless it persists; the position is safe in the ledger"
_LISTED: Final = "see `headrace dead-letters list`"
_SCHEMA: Final = (
    "compare the table, its triggers and the migration's SQL; qualify every name with its schema, since the search_path"
    " is empty; for a trigger's function use `ALTER FUNCTION … SET search_path` or databases.NAME.search_path"
)

TABLE: Final[tuple[Rule, ...]] = (
    # headrace's own.
    Rule(LedgerMoved, Action.REPOSITION, "the partition moved to another consumer", "nothing to do"),
    Rule(RunReplaced, Action.REPOSITION, "a replay started a new run", "nothing to do"),
    Rule(Paused, Action.HOLD, "paused by an operator", "resume it with `headrace resume`"),
    Rule(Failed, Action.HOLD, "the migration has failed", "fix the cause, then run `headrace resume`"),
    Rule(OwnershipMoved, Action.STOP, "the gitlab schema belongs to another database", "see `headrace status`"),
    Rule(DatabaseUnavailable, Action.RECONNECT, "the database does not answer", _GONE),
    Rule(Unavailable, Action.RETRY, "a server does not answer", _GONE),
    # Mostly transient: a row for which it is not becomes a dead letter.
    Rule("40P01", Action.RETRY, "deadlock", "have the other session lock rows in key order", tries=6),
    Rule("40001", Action.RETRY, "serialization failure", "check the role's default_transaction_isolation", tries=6),
    Rule("40", Action.RETRY, "the server rolled the transaction back", "check the server log", tries=6),
    Rule("57014", Action.RETRY, "a statement timed out", "raise statement_timeout for the role", tries=4),
    Rule("25P04", Action.RETRY, "a transaction timed out", "raise transaction_timeout for the role", tries=4),
    Rule("72", Action.RETRY, "a snapshot was too old", "raise old_snapshot_threshold", tries=4),
    # The row's: rejected by the table, its types, or database code.
    Rule("23", Action.SPLIT, "a constraint rejected it", _LISTED),
    Rule("22", Action.SPLIT, "a value is invalid for its type", _LISTED),
    Rule("P0", Action.SPLIT, "a trigger or function rejected it", _LISTED),
    Rule("", Action.SPLIT, "a trigger or function rejected it", _LISTED, source="exec_stmt_raise"),
    Rule("54", Action.SPLIT, "a server limit was exceeded, such as the size of an index row", _LISTED),
    Rule("44", Action.SPLIT, "a view's check option rejected it", _LISTED),
    Rule("21", Action.SPLIT, "a statement affected a row twice or returned more than one row", _LISTED),
    Rule("02", Action.SPLIT, "a function found no row", _LISTED),
    Rule("09", Action.SPLIT, "a triggered action failed", _LISTED),
    Rule("20", Action.SPLIT, "a CASE statement in a function had no matching branch", _LISTED),
    Rule("27", Action.SPLIT, "a trigger modified the row being written", _LISTED),
    Rule("2F", Action.SPLIT, "an SQL function rejected it", _LISTED),
    Rule("38", Action.SPLIT, "an external function failed", _LISTED),
    Rule("39", Action.SPLIT, "an external function was called incorrectly or returned an invalid value", _LISTED),
    # The server's state: waits indefinitely.
    Rule("55P03", Action.RETRY, "timed out waiting for a lock", "look for a long transaction in pg_locks"),
    Rule("25006", Action.RECONNECT, "the server is read-only", "point the dsn at the primary"),
    Rule("25P03", Action.RECONNECT, "the session timed out while idle in a transaction", _GONE),
    Rule("53100", Action.RETRY, "the server's disk is full", "free space on the database server"),
    Rule("53", Action.RETRY, "the server is out of resources", "check the server's connections and memory"),
    Rule("08", Action.RETRY, "the database cannot reach another server", "check its foreign servers", severity="ERROR"),
    Rule("08", Action.RECONNECT, "the connection was lost", _GONE),
    Rule("57P", Action.RECONNECT, "the server is restarting", _GONE),
    Rule("57", Action.RETRY, "an operator intervened", "check the server log", tries=6),
    Rule(
        "0A000", Action.RECONNECT, "a table changed under a prepared statement", _GONE, source="RevalidateCachedQuery"
    ),
    Rule("26", Action.RECONNECT, "a prepared statement is gone", "use session pooling, and no DEALLOCATE in apply"),
    # The row's or the statement's: other rows show which.
    Rule("42501", Action.STOP, "row security hides rows", "give the role BYPASSRLS", source="check_enable_rls"),
    Rule("42501", Action.DOUBT, "the role lacks a privilege", "grant it: `headrace init --sql` prints what is needed"),
    Rule("42", Action.DOUBT, "the migration's SQL does not match the database", _SCHEMA),
    Rule("0A", Action.DOUBT, "the server does not support it", _SCHEMA),
    Rule("3D", Action.DOUBT, "a database does not exist", _SCHEMA),
    Rule("3F", Action.DOUBT, "a schema does not exist", _SCHEMA),
    Rule("2B", Action.DOUBT, "dependent objects or privileges still exist", _SCHEMA),
    Rule("55", Action.DOUBT, "an object is not in the required state", "check the object named here"),
    Rule("HV", Action.DOUBT, "a foreign table failed", "check its foreign server"),
    Rule("58", Action.DOUBT, "the server had a system error", "check the server log and the disks"),
    Rule("XX", Action.DOUBT, "the server had an internal error", "check its log: a table or index may be corrupted"),
    Rule("F0", Action.DOUBT, "the server's configuration is wrong", "check the server log"),
    Rule(
        "28",
        Action.DOUBT,
        "the server rejected the role",
        "check the dsn, pg_hba.conf and the user mappings of foreign servers",
    ),
    Rule("0L", Action.DOUBT, "a grant is not allowed", _SCHEMA),
    Rule("0P", Action.DOUBT, "a role does not exist", _SCHEMA),
    Rule("03", Action.DOUBT, "a statement is not complete", _SCHEMA),
    Rule("0F", Action.DOUBT, "a large object locator is invalid", _SCHEMA),
    Rule("0Z", Action.DOUBT, "a function used GET STACKED DIAGNOSTICS outside an exception handler", _SCHEMA),
    Rule("10", Action.DOUBT, "an XQuery is invalid", _SCHEMA),
    Rule("24", Action.DOUBT, "a cursor is in an invalid state", _SCHEMA),
    Rule("34", Action.DOUBT, "a cursor does not exist", _SCHEMA),
    Rule(
        "0B",
        Action.DOUBT,
        "a transaction was started where none is allowed",
        "do not start or end a transaction in apply",
    ),
    Rule("25", Action.DOUBT, "the transaction is in an invalid state", "do not start or end a transaction in apply"),
    Rule(
        "2D",
        Action.DOUBT,
        "a transaction was ended where that is not allowed",
        "do not start or end a transaction in apply",
    ),
    Rule("3B", Action.DOUBT, "a savepoint does not exist", "do not start or end a transaction in apply"),
    # Any other code comes from the database: RAISE … USING ERRCODE, or an extension.
    Rule("", Action.SPLIT, "a database function rejected it with its own error code", _LISTED),
    # The driver's own errors, which have no SQLSTATE.
    Rule(psycopg.DataError, Action.SPLIT, "a value cannot be converted to SQL", _LISTED),
    Rule(None, Action.RECONNECT, "the connection was lost", _GONE),
)
"""The SQLSTATE classes are PostgreSQL's (errcodes.txt); docs/reference/errors.md shows this table."""

_STOP: Final = Rule(Exception, Action.STOP, "unknown error", "check the log")


TIMEOUTS: Final = frozenset(("55P03", "57014", "25P04"))
"""Retried with fewer rows: a lock wait, a statement or a transaction timed out."""


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
"""What the driver raises for a lost or closed connection; during COPY it is a plain DatabaseError."""


def reason_of(error: psycopg.Error) -> str:
    """Return what rejected a change, without the values that PostgreSQL's message and detail may quote."""
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


def _of_its_names(error: psycopg.Error) -> bool:
    """Whether the server's parser refused a name or a type in the migration's own statement.

    Its message quotes that name or type, and no parameter. A statement that a function composed has a context, and may
    have a value in the place of a name.
    """
    parser = (error.diag.source_file or "").startswith("parse_")
    return parser and error.diag.context is None and (error.sqlstate or "").startswith("42")


def stopped(error: BaseException, rule: Rule, database: str) -> HeadraceError:
    """Return the one-line error to exit with; a HeadraceError is returned unchanged."""
    if isinstance(error, HeadraceError):
        return error
    if (refused := hidden_rows(error)) is not None:
        return refused
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and error.diag.source_function == "aclcheck_error":
        # PostgreSQL's message, not a trigger's: it names the object and quotes no value of a row.
        return HeadraceError(f"database {database}: {rule.what}: {one_line(error)}", remedy=rule.hint)
    if isinstance(error, psycopg.Error):
        described = " ".join((reason_of(error), *getattr(error, "__notes__", ())))
        if _of_its_names(error):
            described = f"{described}: {error.diag.message_primary}"
        return HeadraceError(f"database {database}: {rule.what}: {described}", remedy=rule.hint)
    return HeadraceError(f"{rule.what}: {type(error).__name__}", remedy=rule.hint)
