"""The promises that every migration has to keep, whatever happens to its consumers.

Each is a function of a World that raises AssertionError, or NotApplicable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from prometheus_client import REGISTRY

from consumers.contract.decisions import Decision, Skip
from consumers.contract.migration import Migration
from consumers.delivery.topics import WALKED
from consumers.operations.replay import replay
from consumers.testing.case import Rows
from consumers.testing.table_case import DATABASE
from consumers.testing.waiting import until
from consumers.testing.world import World
from schemas.errors import OwnershipMoved
from schemas.events import UNCHANGED, ChangeEvent, Op


class NotApplicable(Exception):
    """The migration has nothing that this could happen to."""


def migration_changes_only_the_intended_rows(world: World) -> None:
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    assert world.remaining() == world.case.left()
    assert world.run().applied == len(world.case.wanted())
    assert world.remaining() == 0
    assert world.case.rows() == _changed(world, before)


def migration_run_twice_is_idempotent(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.run()
    after, writes = world.case.rows(), world.case.writes()
    world.case.publish()
    assert world.run().applied == 0
    assert (world.case.rows(), world.case.writes()) == (after, writes)


def stale_event_changes_nothing(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.case.settle_elsewhere()
    after, writes = world.case.rows(), world.case.writes()
    assert world.run().applied == 0
    assert (world.case.rows(), world.case.writes()) == (after, writes)


def crash_after_the_write_is_resumed(world: World) -> None:
    world.case.insert()
    world.case.publish()
    try:
        world.run(lambda: _crashing(world.configured()))
    except _Crash:
        pass
    else:
        raise AssertionError("apply was not called")
    assert world.case.writes() == 0
    assert world.run().applied == len(world.case.wanted())
    assert world.case.writes() == len(world.case.wanted())


def replay_from_the_start_changes_no_row_already_up_to_date(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.run()
    after, writes = world.case.rows(), world.case.writes()
    begun = replay(world.settings, world.kind, DATABASE)
    assert begun.run == 2
    totals = world.run()
    assert totals.events > 0
    assert totals.applied == 0
    assert (world.case.rows(), world.case.writes()) == (after, writes)


def values_left_out_of_events_do_not_affect_the_result(world: World) -> None:
    """An update lacks large values that it does not change, and compaction may remove the record that had them."""
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    assert world.run(lambda: _without_texts(world.configured(), world.case.keys)).applied == len(world.case.wanted())
    assert world.remaining() == 0
    assert world.case.rows() == _changed(world, before)


def delete_after_the_rows_new_key_does_not_affect_it(world: World) -> None:
    """A key changed to a text that the database considers equal is a delete and a create, in any two partitions."""
    deleted: list[Decision] = []
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    world.run(lambda: _seeing_deletes(world.configured(), deleted))
    assert deleted
    assert {type(decision) for decision in deleted} == {Skip}
    assert world.case.rows() == _changed(world, before)


def event_waits_until_its_transaction_is_visible(world: World) -> None:
    """PostgreSQL decodes a commit before it is visible to other sessions: the event's row is not visible yet."""
    world.run()
    world.connection.execute("BEGIN")
    world.case.insert()
    (xid,) = world.connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
    if not world.case.publish_as(xid % 2**32):
        raise NotApplicable("its events have no transaction")
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


def row_deleted_and_created_again_is_changed_again(world: World) -> None:
    world.case.insert()
    world.case.publish()
    world.run()
    world.case.recreate()
    assert world.run().applied == len(world.case.wanted())
    assert world.remaining() == 0


def database_without_ownership_is_not_written(world: World) -> None:
    world.run()
    world.case.insert()
    world.case.publish()
    before = world.case.rows()
    world.connection.execute("UPDATE headrace.schema_ownership SET owner = 'elsewhere', epoch = epoch + 1")
    try:
        world.run()
    except OwnershipMoved as error:
        refused = str(error)
    else:
        raise AssertionError("it wrote to a database that does not own the gitlab schema")
    assert "owned by elsewhere, not by here" in refused
    assert (world.case.rows(), world.case.writes()) == (before, 0)


def waiting_partitions(migration: str) -> float:
    """Return how many partitions of a consumer of this process wait, by its metric."""
    return REGISTRY.get_sample_value("headrace_waiting_partitions", {"migration": migration}) or 0.0


def _changed(world: World, before: Rows) -> Rows:
    """Return these rows as they should be afterwards, without those that should be deleted."""
    return {key: row for key, row in {**before, **world.case.wanted()}.items() if row is not None}


class _Crash(BaseException):
    """Simulates the end of the process: it is never caught."""


def _without_texts(migration: Migration, keys: Collection[str]) -> Migration:
    kind = type(migration)

    class SeesNoTexts(kind):  # type: ignore[valid-type, misc]
        """Decides on events without any text, as if every text were in the TOAST table and unchanged."""

        def decide(self, event: ChangeEvent) -> Decision:
            if WALKED not in kind.tables and event.after is not None:
                left = {
                    name: UNCHANGED if isinstance(value, str) and name not in keys else value
                    for name, value in event.after.items()
                }
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


PROMISES: Final[Mapping[str, Callable[[World], None]]] = {
    promise.__name__: promise
    for promise in (
        migration_changes_only_the_intended_rows,
        migration_run_twice_is_idempotent,
        stale_event_changes_nothing,
        crash_after_the_write_is_resumed,
        replay_from_the_start_changes_no_row_already_up_to_date,
        values_left_out_of_events_do_not_affect_the_result,
        delete_after_the_rows_new_key_does_not_affect_it,
        event_waits_until_its_transaction_is_visible,
        row_deleted_and_created_again_is_changed_again,
        database_without_ownership_is_not_written,
    )
}
"""Name → promise."""
