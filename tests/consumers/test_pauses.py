from __future__ import annotations

from typing import Any

import psycopg
import pytest

from consumers import fence
from consumers.ledger import Ledger
from consumers.migrations.skip_resets import SkipResets
from consumers.pauses import is_paused, set_paused
from infra.settings import Settings
from tests.conftest import Database

pytestmark = pytest.mark.stack


def test_pausing_and_resuming_need_no_run_and_may_be_repeated(
    settings: Settings, connection: psycopg.Connection[Any]
) -> None:
    assert not is_paused(settings, SkipResets, "main")
    for wanted in (True, True, False, False, True):
        set_paused(settings, SkipResets, "main", wanted)
        assert is_paused(settings, SkipResets, "main") is wanted
    assert connection.execute("SELECT count(*), max(run) FROM headrace.migrations").fetchone() == (1, 1)


def test_no_transaction_is_under_way_when_pausing_returns(
    settings: Settings, database: Database, connection: psycopg.Connection[Any]
) -> None:
    set_paused(settings, SkipResets, "main", False)
    run = Ledger("skip_resets", "gitlab_main", "test").begin(connection)
    other = database.connect()
    with connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")
        # While that transaction holds the fence, pausing would have to wait for it.
        other.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("UPDATE headrace.migrations SET paused = true")
    set_paused(settings, SkipResets, "main", True)
    with pytest.raises(fence.Paused), connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")
