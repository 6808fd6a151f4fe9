"""Calls a migration's methods and checks their contract: return values, and that `apply` keeps its transaction.

All callers use this module, except that the planner calls `decide` itself and uses this module only for unusual
results. A violation raises ContractBroken before anything is committed, with the file and line of the author's code.
The log has the traceback without the exception's message, which may quote values of a row. A database error is
reraised with the place as a note.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Generator, Sequence
from datetime import datetime
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from consumers.contract.decisions import Change, DeadLetter, Skip
from infra.service import log
from schemas.errors import HeadraceError
from schemas.events import ChangeEvent

if TYPE_CHECKING:
    from consumers.contract.external import Outside
    from consumers.contract.migration import Migration
    from infra.settings.model import Settings

Cursor = psycopg.Cursor[Any]
P = TypeVar("P")
S = TypeVar("S")

_DRIVER_SAYS: Final = re.compile(
    r"Explicit (commit|rollback)\(\) forbidden|only '%s', '%b', '%t' are allowed as placeholders|incomplete placeholder"
    r"|the query has \d+ placeholders but \d+ parameters were passed|query parameter missing"
    r"|positional and named placeholders cannot be mixed|cannot adapt type '[\w.]+'|cannot insert multiple commands"
    r"|the last operation didn't produce (a result|records)|the cursor is closed"
)
"""The driver's messages about incorrect calls that quote no values."""


class ContractBroken(HeadraceError):
    """Fix the migration, install it and restart: nothing was written."""


_ENDED_REMEDY: Final = (
    "remove COMMIT, ROLLBACK and BEGIN from it; what it committed is not in the ledger and will be applied again"
)


def undecided(migration: Migration, event: ChangeEvent, error: Exception) -> Exception:
    """Return the exception to raise if `decide` raised `error`; a HeadraceError is returned unchanged."""
    if isinstance(error, HeadraceError):
        return error
    where = f" for an event of {event.source.table} at {event.source.position}"
    return _raised(migration, "decide", error, where)


def require_decision(migration: Migration, decision: object) -> None:
    """Raise ContractBroken unless `decide` returned a decision."""
    if isinstance(decision, Change):
        return
    if not isinstance(decision, Skip | DeadLetter):
        raise _returned(migration, "decide", decision, "a Skip, a Change or a DeadLetter")
    if not isinstance(decision.reason, str):
        raise _returned(migration, "decide", decision.reason, "a string", "as the reason of its decision ")


def apply(migration: Migration, cursor: Cursor, changes: Sequence[Change]) -> int:
    """Apply `changes` in the cursor's transaction; return how many of them changed something.

    Raises ContractBroken and database errors. Only the server knows whether the transaction is still the same: see
    `require_held`.
    """
    connection = cursor.connection
    # A separate cursor, since `apply` may close it or change its row factory.
    with connection.cursor() as own:
        try:
            applied = migration.apply(own, changes)
        except Exception as error:
            _note(migration, "apply", error, connection)
            raise
    _require_transaction(migration, "apply", connection)
    _require_count(migration, "apply", applied)
    if applied > len(changes):
        problem = f"apply() returned {applied} for {len(changes)} changes"
        raise _broken(migration, "apply", problem, "return how many of the changes changed something")
    return applied


def remaining(migration: Migration, cursor: Cursor) -> int:
    """Return how many rows remain to be changed. Raises as `apply` does."""
    return _counted(migration, "remaining", cursor)


def validate(migration: Migration, connection: psycopg.Connection[Any]) -> None:
    """Call the migration's `validate` in a transaction of its own, which is rolled back. Raises as `apply` does."""
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        _called(migration, "validate", cursor)


def take_up(migration: Migration, cursor: Cursor, names: Sequence[str]) -> int:
    """Make the migration's `work` retry what it gave up; return how many. Raises as `apply` does."""
    return _counted(migration, "take_up", cursor, names)


def given_up(migration: Migration, cursor: Cursor) -> list[tuple[str, str, datetime]]:
    """Return what the migration's `work` gave up, as (name, reason, since). Raises as `apply` does."""
    found = _called(migration, "given_up", cursor)
    rows = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else None
    if rows is None or not all(isinstance(row, tuple) and _types_of(row) == (str, str, datetime) for row in rows):
        raise _returned(migration, "given_up", found, "a list of (name, reason, datetime)")
    return rows


def unready(migration: Migration, settings: Settings) -> list[HeadraceError]:
    """Return the reasons why the migration's `work` cannot start here. Raises ContractBroken."""
    try:
        found: list[object] = list(migration.unready(settings))
    except Exception as error:
        _note(migration, "unready", error, None)
        raise
    errors = [each for each in found if isinstance(each, HeadraceError)]
    if len(errors) < len(found):
        raise _returned(migration, "unready", found, "HeadraceErrors")
    return errors


def work_status(migration: Migration, cursor: Cursor, kind: type[S]) -> S:
    """Return the progress of the migration's `work`, a `kind`. Raises as `apply` does."""
    found = _called(migration, "work_status", cursor)
    if not isinstance(found, kind):
        raise _returned(migration, "work_status", found, f"a {kind.__name__}")
    return found


def work(migration: Migration, outside: Outside, pace: type[P]) -> Generator[P]:
    """Yield from the migration's `work`. Raises ContractBroken for anything that is not a `pace`."""
    try:
        steps = iter(migration.work(outside))
    except Exception as error:
        _note(migration, "work", error, None)
        raise
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration:
                return
            except Exception as error:
                _note(migration, "work", error, None)
                raise
            if not isinstance(step, pace):
                raise _returned(migration, "work", step, f"a {pace.__name__}", verb="yielded")
            yield step
    finally:
        if isinstance(steps, Generator):
            steps.close()


def still_held(cursor: Cursor) -> bool:
    """Return whether the transaction is still the one that took the fence, if no later statement returned that."""
    return cursor.execute("SELECT pg_catalog.current_setting('headrace.fenced', true)").fetchone() != ("",)


def require_held(migration: Migration, held: bool) -> None:
    """Raise ContractBroken unless `apply` kept its transaction (`held`); see `fence.hold`."""
    if not held:
        raise _broken(migration, "apply", "apply() ended the transaction it was called in", _ENDED_REMEDY)


def _called(migration: Migration, method: str, cursor: Cursor, *arguments: object) -> object:
    """Call a method in a savepoint, which disappears if the method ends the transaction."""
    connection = cursor.connection
    try:
        with connection.transaction():
            try:
                result: object = getattr(migration, method)(cursor, *arguments)
            except Exception as error:
                _note(migration, method, error, connection)
                raise
            _require_transaction(migration, method, connection)
    except psycopg.errors.InvalidSavepointSpecification as error:
        ended = f"{method}() ended the transaction it was called in"
        raise _broken(migration, method, ended, _ENDED_REMEDY) from error
    return result


def _counted(migration: Migration, method: str, cursor: Cursor, *arguments: object) -> int:
    return _require_count(migration, method, _called(migration, method, cursor, *arguments))


def _require_count(migration: Migration, method: str, count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool):
        raise _returned(migration, method, count, "a number of rows")
    if count < 0:
        raise _broken(migration, method, f"{method}() returned {count}, which is not a number of rows")
    return count


def _require_transaction(migration: Migration, method: str, connection: psycopg.Connection[Any]) -> None:
    status = connection.info.transaction_status
    if status == TransactionStatus.INTRANS or connection.closed:
        return  # a lost connection raises at the next statement
    if status == TransactionStatus.IDLE:
        raise _broken(migration, method, f"{method}() ended the transaction it was called in", _ENDED_REMEDY)
    if status == TransactionStatus.INERROR:
        problem = f"{method}() caught a database error and continued, but the transaction is aborted"
        raise _broken(migration, method, problem, "catch it outside `with cursor.connection.transaction():`")
    connection.close()  # the only way to end an open COPY or stream
    raise _broken(migration, method, f"{method}() left a COPY or a stream open", "close it before returning")


def _note(migration: Migration, method: str, error: Exception, connection: psycopg.Connection[Any] | None) -> None:
    """Add the place to a database error. Raises ContractBroken for any error that is not a HeadraceError."""
    if isinstance(error, HeadraceError):
        return
    if not isinstance(error, psycopg.Error) or _misused(error, connection):
        raise _raised(migration, method, error) from error
    error.add_note(f"in {method}() at {_place(migration, method, error)}")


def _misused(error: psycopg.Error, connection: psycopg.Connection[Any] | None) -> bool:
    """Whether the driver rejected a call, not the server. A value it cannot adapt is the row's fault instead."""
    if error.sqlstate is not None or isinstance(error, psycopg.DataError | psycopg.OperationalError):
        return False
    return type(error) is not psycopg.DatabaseError and not (connection is not None and connection.closed)


def _raised(migration: Migration, method: str, error: Exception, where: str = "") -> ContractBroken:
    said = _DRIVER_SAYS.search(str(error)) if isinstance(error, psycopg.Error) else None
    what = f"{type(error).__name__}{f' ({said.group()})' if said else ''}"
    remedy = "write %% for a percent sign in SQL with parameters" if "placeholder" in what else None
    return _broken(migration, method, f"{method}() raised {what}{where}", remedy, error=error)


def _returned(
    migration: Migration, method: str, value: object, wanted: str, where: str = "", *, verb: str = "returned"
) -> ContractBroken:
    kind = "None" if value is None else type(value).__name__
    return _broken(migration, method, f"{method}() {verb} {where}{kind}, not {wanted}")


def _broken(
    migration: Migration, method: str, problem: str, remedy: str | None = None, *, error: Exception | None = None
) -> ContractBroken:
    place = _place(migration, method, error)
    logged: dict[str, object] = {"exception": _frames(error)} if error is not None else {}
    log.get(migration=migration.name).error("migration broke its contract", problem=problem, at=place, **logged)
    return ContractBroken(f"{migration.name}: {problem}, at {place}", remedy=remedy)


def _frames(error: BaseException) -> str:
    """Return the traceback and those of its causes, with the exceptions' types but not their messages."""
    text = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{_frames(before)}\n\nand then:\n\n{text}" if before is not None else text


def _place(migration: Migration, method: str, error: BaseException | None) -> str:
    """Return `file:line` of the innermost frame of the author's code, else of the method's first line."""
    files = {
        _file(kind)
        for kind in type(migration).__mro__
        if kind.__module__ not in ("consumers.contract.migration", "abc")
    }
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__ if error is not None else None))):
        if frame.f_code.co_filename in files:
            return f"{frame.f_code.co_filename}:{line}"
    function = inspect.unwrap(getattr(type(migration), method))
    if isinstance(function, FunctionType):
        return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
    return f"class {type(migration).__qualname__}"


def _file(kind: type) -> str | None:
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return None


def _types_of(row: tuple[Any, ...]) -> tuple[type, ...]:
    return tuple(datetime if isinstance(value, datetime) else type(value) for value in row)
