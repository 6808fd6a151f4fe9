"""The conditions that every migration must withstand.

Each migration is found by its file, and its case by the migration's name: tests/consumers/cases/<name>.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from consumers.contract.decisions import Decision, Skip
from consumers.contract.migration import Migration
from consumers.delivery.topics import WALKED
from consumers.operations.catalog import migrations, target_database
from consumers.operations.replay import replay
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved
from schemas.events import UNCHANGED, ChangeEvent, Op
from tests.conftest import Database
from tests.consumers.cases import Case, case_of
from tests.waiting import until

pytestmark = pytest.mark.stack

Connection = psycopg.Connection[Any]


@pytest.fixture(params=sorted(migrations()))
def name(request: pytest.FixtureRequest) -> str:
    """Each migration."""
    return str(request.param)


@pytest.fixture
def world(name: str, bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> World:
    return World(name, bootstrap_servers, prefix, database, tmp_path)


class World:
    """A migration with its database, its topic and some rows that it should and should not change."""

    def __init__(self, name: str, bootstrap_servers: str, prefix: str, database: Database, directory: Path) -> None:
        self.kind = migrations()[name]
        self.connection = database.connect()
        settings = Settings(
            prefix=prefix,
            kafka={"bootstrap_servers": bootstrap_servers},  # type: ignore[arg-type]
            databases={"here": {"dsn": database.dsn, "gitlab_schemas": [self.kind.gitlab_schema]}},  # type: ignore[dict-item]
        )
        self.settings = case_of(name).surroundings(settings, directory)
        self.case: Case = case_of(name)(self.settings, self.connection)

    def run(self, kind: Callable[[], Migration] | None = None) -> Totals:
        migration = kind() if kind else self.configured()
        database = target_database(self.settings, self.kind)
        return consumer_of(self.settings, migration, database, stopping=threading.Event(), until_caught_up=True).run()

    def configured(self) -> Migration:
        return self.kind.configure(self.settings.migration(self.kind.name))

    def remaining(self) -> int:
        with self.connection.cursor() as cursor:
            return self.configured().remaining(cursor)


def test_migration_changes_only_the_intended_rows(world: World) -> None:
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    assert world.remaining() == world.case.left()
    assert world.run().applied == len(world.case.wanted())
    assert world.remaining() == 0
    assert world.case.rows() == {**before, **world.case.wanted()}


def test_migration_run_twice_is_idempotent(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.run()
    after, writes = world.case.rows(), world.case.writes()
    world.case.publish()
    assert world.run().applied == 0
    assert (world.case.rows(), world.case.writes()) == (after, writes)


def test_stale_event_changes_nothing(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.case.settle_elsewhere()
    after, writes = world.case.rows(), world.case.writes()
    assert world.run().applied == 0
    assert (world.case.rows(), world.case.writes()) == (after, writes)


def test_crash_after_the_write_is_resumed(world: World) -> None:
    world.case.insert()
    world.case.publish()
    with pytest.raises(_Crash):
        world.run(lambda: _crashing(world.configured()))
    assert world.case.writes() == 0
    assert world.run().applied == len(world.case.wanted())
    assert world.case.writes() == len(world.case.wanted())


def test_replay_from_the_start_changes_no_row_already_up_to_date(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.run()
    after, writes = world.case.rows(), world.case.writes()
    begun = replay(world.settings, world.kind, "here")
    assert begun.run == 2
    totals = world.run()
    assert totals.events > 0
    assert totals.applied == 0
    assert (world.case.rows(), world.case.writes()) == (after, writes)


def test_values_left_out_of_events_do_not_affect_the_result(world: World) -> None:
    """An update lacks large values that it does not change, and compaction may remove the record that had them."""
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    assert world.run(lambda: _without_texts(world.configured())).applied == len(world.case.wanted())
    assert world.remaining() == 0
    assert world.case.rows() == {**before, **world.case.wanted()}


def test_delete_after_the_rows_new_key_does_not_affect_it(world: World) -> None:
    """A key changed to a text that the database considers equal is a delete and a create, in any two partitions."""
    deleted: list[Decision] = []
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    world.run(lambda: _seeing_deletes(world.configured(), deleted))
    assert deleted
    assert {type(decision) for decision in deleted} == {Skip}
    assert world.case.rows() == {**before, **world.case.wanted()}


def test_event_waits_until_its_transaction_is_visible(world: World) -> None:
    """PostgreSQL decodes a commit before it is visible to other sessions: the event's row is not visible yet."""
    world.run()
    world.connection.execute("BEGIN")
    world.case.insert()
    (xid,) = world.connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
    if not world.case.publish_as(xid % 2**32):
        pytest.skip("its events have no transaction")
    world.case.publish()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(world.run)
        until(lambda: running.done() or waiting_partitions(world.kind.name), "a partition waits")
        still_running, before = not running.done(), world.case.writes()
        world.connection.execute("COMMIT")
        totals = running.result()
    assert still_running
    assert before == 0
    assert totals.applied == len(world.case.wanted())
    assert world.remaining() == 0


def test_row_deleted_and_created_again_is_changed_again(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.run()
    world.case.recreate()
    assert world.run().applied == len(world.case.wanted())
    assert world.remaining() == 0


def test_database_without_ownership_is_not_written(world: World) -> None:
    world.run()
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    world.connection.execute("UPDATE headrace.schema_ownership SET owner = 'elsewhere', epoch = epoch + 1")
    with pytest.raises(OwnershipMoved, match="owned by elsewhere, not by here"):
        world.run()
    assert (world.case.rows(), world.case.writes()) == (before, 0)


def waiting_partitions(migration: str) -> float:
    """Return how many partitions of a consumer of this process wait, by its metric."""
    return REGISTRY.get_sample_value("headrace_waiting_partitions", {"migration": migration}) or 0.0


class _Crash(BaseException):
    """Simulates the end of the process: it is never caught."""


def _without_texts(migration: Migration) -> Migration:
    kind = type(migration)

    class SeesNoTexts(kind):  # type: ignore[valid-type, misc]
        """Decides on events without any text, as if every text were in the TOAST table and unchanged."""

        def decide(self, event: ChangeEvent) -> Decision:
            if WALKED not in kind.tables and event.after is not None:
                left = {name: UNCHANGED if isinstance(value, str) else value for name, value in event.after.items()}
                event = replace(event, after=left)
            decision: Decision = super().decide(event)
            return decision

    made: Migration = SeesNoTexts(migration.options)
    return made


def _seeing_deletes(migration: Migration, deleted: list[Decision]) -> Migration:
    kind = type(migration)

    class SeesADeleteOfEachRow(kind):  # type: ignore[valid-type, misc]
        """Decides on each row, and then on the delete of a key that is equal to the row's."""

        def decide(self, event: ChangeEvent) -> Decision:
            decision: Decision = super().decide(event)
            deleted.append(super().decide(replace(event, op=Op.DELETE, before=event.after, after=None)))
            return decision

    made: Migration = SeesADeleteOfEachRow(migration.options)
    return made


def _crashing(migration: Migration) -> Migration:
    kind = type(migration)

    class CrashesAfterWriting(kind):  # type: ignore[valid-type, misc]
        """Writes, and dies before the ledger moves."""

        def apply(self, cursor: Any, changes: Any) -> int:
            super().apply(cursor, changes)
            raise _Crash

    made: Migration = CrashesAfterWriting(migration.options)
    return made
