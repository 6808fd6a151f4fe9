"""Consumers stopped by SIGSTOP at a chosen moment, and their backends meanwhile."""

from __future__ import annotations

import signal
import socket
from typing import Any

import psycopg

from tests.consumers.conftest import Member


def named(member: Member) -> str:
    """Return a consumer's name in its group; see consumers.ledger.progress.member_name."""
    return f"{socket.gethostname()}:{member.pid}"


def backends(connection: psycopg.Connection[Any]) -> dict[int, tuple[str, str | None]]:
    """Return the backend of each consumer: its state and wait event."""
    found = connection.execute(
        "SELECT pid, state, wait_event_type FROM pg_stat_activity"
        " WHERE application_name = 'headrace consume skip_resets' AND datname = current_database()"
    )
    return {pid: (state, waits) for pid, state, waits in found}


def freeze_between_transactions(member: Member, connection: psycopg.Connection[Any]) -> None:
    """Stop the process at a moment when it holds no lock that others wait for."""
    while True:
        member.send_signal(signal.SIGSTOP)
        if {state for state, _ in backends(connection).values()} == {"idle"}:
            return
        member.send_signal(signal.SIGCONT)
