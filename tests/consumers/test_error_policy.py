from __future__ import annotations

import psycopg
import pytest

from consumers.error_policy import TABLE, Action, rule_for, stopped
from consumers.fence import Paused, RunReplaced
from consumers.ledger import LedgerMoved
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
        (psycopg.errors.InsufficientPrivilege(), Action.STOP),
        (psycopg.errors.UndefinedTable(), Action.STOP),
        (psycopg.errors.InternalError_(), Action.STOP),
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


def test_every_row_says_what_and_what_to_do() -> None:
    for rule in TABLE:
        assert rule.what
        assert rule.hint


def test_an_error_that_stops_is_one_line_of_ours() -> None:
    error = psycopg.errors.UndefinedTable('relation "x" does not exist\nLINE 1: …')
    ours = stopped(error, rule_for(error), "main")
    assert str(ours).startswith("database main: the database does not have what the migration writes: 42P01")
    assert "\n" not in str(ours)
    moved = OwnershipMoved("moved")
    assert stopped(moved, rule_for(moved), "main") is moved
