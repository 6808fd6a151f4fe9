"""Advisory locks: their holders, and their fair queue."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.advisory_locks import exclude, holders, lock_key, migration_key, ownership_key
from tests.conftest import Database
from tests.consumers.services import advisory_lock_is_waited_for

pytestmark = pytest.mark.stack


def test_keys_differ_by_kind_and_name_and_fit_64_bits() -> None:
    keys = {migration_key("a"), migration_key("b"), ownership_key("a"), lock_key("c", "a")}
    assert len(keys) == 4
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert migration_key("a") == lock_key("migration", "a")


def test_the_sessions_that_have_a_lock_are_named(database: Database) -> None:
    for key in (lock_key("test", "positive"), -5, 5):
        with database.connect() as having, having.transaction():
            having.execute("SET LOCAL application_name = 'headrace consume m'")
            having.execute("SELECT pg_advisory_xact_lock_shared(%s)", (key,))
            (found,) = holders(database.connect(), key)
            assert found.startswith(f"headrace consume m (process {having.info.backend_pid}, since 2")
        assert holders(database.connect(), key) == []


def test_exclusive_lock_waits_only_for_earlier_requests(database: Database) -> None:
    """Sharers that come later queue behind: overlapping ones cannot starve it."""
    key = lock_key("test", "queue")
    first, alone, later = database.connect(), database.connect(), database.connect()
    first.execute("BEGIN")
    first.execute("SELECT pg_advisory_xact_lock_shared(%s)", (key,))
    waiting = threading.Event()

    def exclusively() -> None:
        with alone.transaction():
            waiting.set()
            exclude(alone, [key])

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(exclusively)
        waiting.wait()
        until(lambda: advisory_lock_is_waited_for(database.connect()), "it waits")
        later.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            later.execute("SELECT pg_advisory_xact_lock_shared(%s)", (key,))
        first.execute("COMMIT")
        taken.result()
    later.execute("SELECT pg_advisory_xact_lock_shared(%s)", (key,))
