"""Runs `headrace` as a process that kills itself where it records an operator's action.

`python -m tests.killed_commands POINT ACTION WORDS…`; the product's code does not know of the points.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import psycopg

from consumers.testing.waiting import until
from infra.state import history
from infra.state.history import OperatorAction

ROOT: Final = Path(__file__).parents[1]


class Point(StrEnum):
    """Where the process dies, at the first such action."""

    UNRECORDED = "unrecorded"
    """The action is done, as far as its transaction has come, and not recorded."""
    RECORDED = "recorded"
    """It is recorded, and the transaction that both are in is not committed."""
    COMMITTED = "committed"
    """That transaction was just committed."""


def killed_command(point: Point, action: OperatorAction, *words: object) -> bool:
    """Run `headrace WORDS` from the checkout; return whether it died at the point, rather than ended with 0."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed_commands", point, action, *map(str, words)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode == -signal.SIGKILL


def await_end(*connections: psycopg.Connection[Any], of: str = "headrace %") -> None:
    """Wait until the servers have ended the sessions of killed commands, and with them their transactions."""
    for connection in connections:

        def ended(asked: psycopg.Connection[Any] = connection) -> bool:
            found = asked.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s",
                (of,),
            )
            return found.fetchone() == (0,)

        until(ended, "the sessions of the killed command have ended")


def arm(point: Point, wanted: OperatorAction) -> None:
    """Make this process die there; before the modules that record actions are imported."""
    record_action: Callable[..., None] = history.record_action
    leave: Callable[..., bool] = psycopg.Transaction.__exit__
    armed: list[psycopg.Connection[Any]] = []

    def recording(connection: psycopg.Connection[Any], action: OperatorAction, *arguments: Any, **details: Any) -> None:
        if action is not wanted:
            record_action(connection, action, *arguments, **details)
            return
        if point is Point.UNRECORDED:
            _die()
        record_action(connection, action, *arguments, **details)
        if point is Point.RECORDED or _idle(connection):
            _die()
        armed.append(connection)

    def leaving(transaction: psycopg.Transaction, *arguments: Any) -> bool:
        result = leave(transaction, *arguments)
        if transaction.connection in armed and _idle(transaction.connection):
            _die()
        return result

    for owner, name, call in ((history, "record_action", recording), (psycopg.Transaction, "__exit__", leaving)):
        setattr(owner, name, call)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _idle(connection: psycopg.Connection[Any]) -> bool:
    return connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


if __name__ == "__main__":
    arm(Point(sys.argv[1]), OperatorAction(sys.argv[2]))
    import headrace

    sys.argv = ["headrace", *sys.argv[3:]]
    headrace.main()
