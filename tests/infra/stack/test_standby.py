"""A physical standby follows its primary, slots included, and takes over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.testing.waiting import until
from infra.stack import embedded_stack
from infra.stack.postgresql.server import EmbeddedPostgres

pytestmark = pytest.mark.stack


def consume(server: EmbeddedPostgres, slot: str) -> None:
    """Move a slot to the end of the log, as a producer does all the time."""
    with server.connect() as connection:
        connection.execute("SELECT pg_log_standby_snapshot()")
        connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])


def wait_until(
    server: EmbeddedPostgres, query: str, expected: object, meanwhile: Callable[[], object] | None = None
) -> None:
    with server.connect() as connection:
        until(lambda: connection.execute(query.encode()).fetchone() == expected, query, meanwhile=meanwhile)


@pytest.mark.long
def test_a_standby_takes_over_with_data_and_failover_slots() -> None:
    with embedded_stack() as stack:
        primary = stack.postgres
        with primary.connect() as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS x")
        standby = stack.standby("replica")
        with primary.connect() as connection:
            connection.execute("SELECT pg_create_logical_replication_slot('moving', 'pgoutput', false, false, true)")
            connection.execute("INSERT INTO t VALUES (2)")
        wait_until(standby, "SELECT count(*) FROM t", (2,))
        synced = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'moving'"
        wait_until(standby, synced, (True,), meanwhile=lambda: consume(primary, "moving"))

        primary.kill()
        standby.promote()

        with standby.connect() as connection:
            connection.execute("INSERT INTO t VALUES (3)")
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (3,)


@pytest.mark.long
def test_a_primary_continues_without_a_standby_that_was_promoted() -> None:
    with embedded_stack() as stack:
        standby = stack.standby("replica")
        standby.promote()
        stack.postgres.forget_standby("replica")
        with stack.postgres.connect() as connection:
            assert connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
            assert connection.execute("SHOW synchronized_standby_slots").fetchone() == ("",)
        standby.kill()
        standby.start()
        with standby.connect() as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
