"""Seed 003, sentence by sentence: rows that are reset, rows that are not, and their columns."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from consumers.contract.decisions import Change, Skip
from consumers.contract.migration import Migration
from consumers.migrations.skip_resets import SkipResets
from consumers.runtime.assembly import consumer_of
from infra.settings.model import MigrationSettings, Settings
from schemas.events import UNCHANGED, ChangeEvent, Op, Row, Source
from schemas.positions import Lsn, Position
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS, Feed, fill, states, written

STATES = (
    "default",
    "pre_importing",
    "pre_import_done",
    "importing",
    "import_done",
    "import_aborted",
    "import_skipped",
)
REASONS = (None, 0, 1, 2, 3, 4, 5, 6, 7)


def event(op: Op, after: Row | None) -> ChangeEvent:
    source = Source("main", "gitlab_main", "public", "container_repositories", Position(Lsn(9), 0), 7, 1, False)
    return ChangeEvent(op, source, 2, None, after)


def row(state: object, reason: object) -> Row:
    return {"id": 5, "migration_state": state, "migration_skipped_reason": reason}


@pytest.fixture
def migration() -> Migration:
    return SkipResets.configure(MigrationSettings())


@pytest.fixture
def connection(database: Any) -> psycopg.Connection[Any]:
    opened: psycopg.Connection[Any] = database.connect()
    opened.execute(TABLE)
    return opened


@pytest.mark.parametrize("op", [Op.READ, Op.CREATE, Op.UPDATE])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("reason", REASONS)
def test_all_with_a_state_of_import_skipped_and_the_reason_too_many_tags_which_is_2_are_changed_and_no_other(
    migration: Migration, op: Op, state: str, reason: int | None
) -> None:
    decision = migration.decide(event(op, row(state, reason)))
    if (state, reason) == TOO_MANY_TAGS:
        assert decision == Change(5)
    else:
        assert isinstance(decision, Skip)


@pytest.mark.parametrize(("state", "reason"), [(UNCHANGED, 2), ("import_skipped", UNCHANGED), (UNCHANGED, UNCHANGED)])
def test_value_left_out_by_the_stream_is_decided_by_the_guard(
    migration: Migration, state: object, reason: object
) -> None:
    assert migration.decide(event(Op.UPDATE, row(state, reason))) == Change(5)


@pytest.mark.parametrize(("state", "reason"), [(UNCHANGED, 1), ("default", UNCHANGED), (UNCHANGED, None)])
def test_present_value_decides_even_if_the_other_was_left_out(
    migration: Migration, state: object, reason: object
) -> None:
    assert isinstance(migration.decide(event(Op.UPDATE, row(state, reason))), Skip)


def test_deletes_and_truncates_are_skipped(migration: Migration) -> None:
    assert migration.decide(event(Op.DELETE, None)) == Skip("deleted")
    assert migration.decide(event(Op.TRUNCATE, None)) == Skip("truncated")


def every_kind() -> dict[int, tuple[str, int | None]]:
    kinds = [(state, reason) for state in STATES for reason in REASONS]
    return dict(enumerate(kinds, 1))


@pytest.mark.stack
def test_back_to_a_state_of_default_and_removing_the_skipped_reason_of_no_other_row(
    migration: Migration, connection: psycopg.Connection[Any]
) -> None:
    rows = every_kind()
    fill(connection, rows)
    skipped = [key for key, kind in rows.items() if kind == TOO_MANY_TAGS]
    with connection.transaction(), connection.cursor() as cursor:
        # Every row, as if each had matched once: the guard alone must suffice.
        assert migration.apply(cursor, [Change(key) for key in rows]) == len(skipped)
        assert migration.remaining(cursor) == 0
    assert states(connection) == {key: ("default", None) if key in skipped else rows[key] for key in rows}
    assert written(connection) == skipped


@pytest.mark.stack
def test_once_reset_they_qualify_for_import_and_can_be_skipped_and_reset_again(
    migration: Migration, connection: psycopg.Connection[Any]
) -> None:
    fill(connection, {5: TOO_MANY_TAGS})
    for _ in range(2):
        with connection.transaction(), connection.cursor() as cursor:
            assert migration.apply(cursor, [Change(5)]) == 1
        assert states(connection) == {5: ("default", None)}
        connection.execute("UPDATE container_repositories SET migration_state = 'importing'")
        connection.execute(
            "UPDATE container_repositories SET migration_state = %s, migration_skipped_reason = %s", TOO_MANY_TAGS
        )


def test_batch_size_is_10_000_and_each_sub_batch_processes_100_records() -> None:
    settings = MigrationSettings()
    assert (settings.batch_size, settings.sub_batch_size) == (10_000, 100)


@pytest.mark.stack
def test_each_update_has_at_most_100_records(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any]
) -> None:
    rows = dict.fromkeys(range(1, 1_051), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    section = MigrationSettings(batch_size=10_000, sub_batch_size=100, adaptive=False)
    chosen = settings.model_copy(update={"migrations": {"skip_resets": section}})
    work = SkipResets.configure(section)
    totals = consumer_of(chosen, work, "main", stopping=threading.Event(), until_caught_up=True).run()
    assert totals.applied == 1_050
    sizes = connection.execute("SELECT count(*) FROM container_repositories GROUP BY xmin ORDER BY 1 DESC").fetchall()
    assert sizes[0] == (100,)
    assert len(sizes) >= 11


@pytest.mark.stack
def test_update_reads_only_its_own_records(migration: Migration, connection: psycopg.Connection[Any]) -> None:
    fill(connection, {key: TOO_MANY_TAGS if key % 40 == 0 else ("default", None) for key in range(1, 20_001)})
    connection.execute("VACUUM ANALYZE container_repositories")
    connection.execute("SELECT pg_stat_force_next_flush()")
    before = sequential_scans(connection)
    with connection.transaction(), connection.cursor() as cursor:
        assert migration.apply(cursor, [Change(key) for key in range(40, 4_001, 40)]) == 100
    connection.execute("SELECT pg_stat_force_next_flush()")
    assert sequential_scans(connection) == before


def sequential_scans(connection: psycopg.Connection[Any]) -> tuple[int, ...] | None:
    return connection.execute(
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'container_repositories'"
    ).fetchone()


def test_index_of_the_additional_note_is_suggested_and_not_required() -> None:
    # `headrace check` suggests it where it would help: tests/consumers/contract/test_suggested_index.py.
    (index,) = SkipResets.suggested_indexes
    assert index.columns == ("migration_state", "migration_skipped_at", "id")


@pytest.mark.stack
def test_row_changed_by_the_application_meanwhile_is_left_unchanged(
    migration: Migration, connection: psycopg.Connection[Any]
) -> None:
    fill(connection, {5: TOO_MANY_TAGS})
    connection.execute("UPDATE container_repositories SET migration_state = 'importing' WHERE id = 5")
    with connection.transaction(), connection.cursor() as cursor:
        assert migration.apply(cursor, [Change(5)]) == 0
    assert states(connection) == {5: ("importing", 2)}


SHIPPED = (
    "migration_pre_import_started_at",
    "migration_pre_import_done_at",
    "migration_import_started_at",
    "migration_import_done_at",
    "migration_aborted_at",
    "migration_skipped_at",
)


@pytest.mark.stack
@pytest.mark.parametrize("clear", [False, True])
def test_shipped_jobs_columns_are_cleared_only_by_option(connection: psycopg.Connection[Any], clear: bool) -> None:
    options = MigrationSettings.model_validate({"clear_shipped_columns": clear})
    fill(connection, {5: TOO_MANY_TAGS})
    times = ", ".join(f"{column} = '2024-01-01'" for column in SHIPPED)
    connection.execute(
        f"UPDATE container_repositories SET {times}, migration_retries_count = 3,"
        " migration_aborted_in_state = 'importing', migration_plan = 'free'"
    )
    before = whole_row(connection)
    with connection.transaction(), connection.cursor() as cursor:
        assert SkipResets.configure(options).apply(cursor, [Change(5)]) == 1
    changed = {"migration_state": "default", "migration_skipped_reason": None}
    if clear:
        changed |= dict.fromkeys(SHIPPED) | {"migration_retries_count": 0, "migration_aborted_in_state": None}
    assert whole_row(connection) == before | changed


def whole_row(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    found = connection.execute("SELECT to_jsonb(r) FROM container_repositories r WHERE id = 5").fetchone()
    assert found is not None
    return dict(found[0])
