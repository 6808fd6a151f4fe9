"""Seed 004, sentence by sentence: the status is added in three releases that block no other session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.contract.backfill import NotExpanded
from consumers.contract.decisions import Change, Skip
from consumers.contract.migration import Migration
from consumers.migrations.status_backfills import StatusBackfills
from consumers.operations.pauses import set_paused
from infra.service import log
from infra.settings.model import MigrationSettings, Settings
from schemas.events import UNCHANGED, ChangeEvent, Op, Row, Source
from schemas.positions import Lsn, Position
from tests.conftest import Database
from tests.consumers.commands.schema_commands import Run, caught_up, done, refused, registry_settings, runner
from tests.consumers.registry import EXPANDED, LOG, TABLE, RegistryFeed, insert, insert_with_status, statuses, writes

STATUSES = ("native", "import_in_progress", "import_complete", "import_failed", "pre_import_canceled")


def event(op: Op, after: Row | None) -> ChangeEvent:
    source = Source("main", "registry", "public", "repositories", Position(Lsn(9), 0), 7, 1, False)
    return ChangeEvent(op, source, 2, None, after)


def row(*status: object) -> Row:
    return {"top_level_namespace_id": 3, "id": 5, **({"migration_status": status[0]} if status else {})}


@pytest.fixture
def migration() -> Migration:
    return StatusBackfills.configure(MigrationSettings())


@pytest.mark.parametrize("op", [Op.READ, Op.CREATE, Op.UPDATE])
@pytest.mark.parametrize("status", STATUSES)
def test_row_with_any_status_is_skipped(migration: Migration, op: Op, status: str) -> None:
    assert migration.decide(event(op, row(status))) == Skip("has a value")


@pytest.mark.parametrize("op", [Op.READ, Op.CREATE, Op.UPDATE])
@pytest.mark.parametrize("after", [row(None), row(), row(UNCHANGED)])
def test_row_without_status_may_need_one(migration: Migration, op: Op, after: Row) -> None:
    assert migration.decide(event(op, after)) == Change((3, 5))


def test_deletes_and_truncates_are_skipped(migration: Migration) -> None:
    assert migration.decide(event(Op.DELETE, None)) == Skip("deleted")
    assert migration.decide(event(Op.TRUNCATE, None)) == Skip("truncated")


@pytest.fixture
def config(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Path:
    return registry_settings(tmp_path, bootstrap_servers, prefix, database)


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    """A connection to a registry before the releases, with a log of the writes to it."""
    opened = database.connect()
    opened.execute(TABLE + LOG)
    return opened


@pytest.fixture
def run(config: Path, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    # The runner closes its standard error after each command, and the log of this process would keep using it.
    monkeypatch.setattr(log, "configure", lambda _settings: None)
    return runner(config)


def columns(connection: psycopg.Connection[Any]) -> Mapping[str, tuple[Any, ...]]:
    found = connection.execute(
        "SELECT column_name, data_type, column_default, is_nullable FROM information_schema.columns"
        " WHERE table_name = 'repositories'"
    )
    return {name: rest for name, *rest in found}


def checks(connection: psycopg.Connection[Any]) -> dict[str, str]:
    found = connection.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 'repositories'::regclass AND conname LIKE '%%migration_status%%'"
    )
    return dict(found.fetchall())


LENGTH = "CHECK ((char_length(migration_status) <= 255))"
REQUIRED = "CHECK ((migration_status IS NOT NULL))"


@pytest.mark.stack
class TestReleaseN:
    """Add the new column; default it to native on the application side."""

    def test_add_new_migration_status_column_text_without_a_default_or_not_null_constraint(
        self, run: Run, connection: psycopg.Connection[Any]
    ) -> None:
        before = columns(connection)
        assert len(done(run("expand", "--json"))) == 3
        assert columns(connection) == {**before, "migration_status": ["text", None, "YES"]}

    def test_its_length_is_at_most_255_and_the_check_is_validated(
        self, run: Run, connection: psycopg.Connection[Any]
    ) -> None:
        run("expand")
        assert checks(connection) == {"check_repositories_migration_status_length": LENGTH}
        insert_with_status(connection, {(1, 1): "x" * 255})
        with pytest.raises(psycopg.errors.CheckViolation):
            insert_with_status(connection, {(1, 2): "x" * 256})

    def test_expand_is_idempotent(self, run: Run) -> None:
        assert run("expand").stdout.count("1 try)\n") == 3
        assert "already up to date" in run("expand").stdout
        assert done(run("expand", "--json")) == []

    def test_old_application_still_writes_and_new_one_defaults_to_native(
        self, run: Run, connection: psycopg.Connection[Any]
    ) -> None:
        run("expand")
        insert(connection, [(1, 1)])
        insert_with_status(connection, {(1, 2): "native"})
        assert statuses(connection) == {(1, 1): None, (1, 2): "native"}

    def test_down_drops_the_column_after_confirmation_unless_other_statuses_are_lost(
        self, run: Run, connection: psycopg.Connection[Any]
    ) -> None:
        before = columns(connection)
        run("expand")
        insert_with_status(connection, {(1, 1): "native", (1, 2): "import_complete", (1, 3): None})
        assert "would be lost with the column" in refused(run("expand", "--down", "--yes"))
        connection.execute("DELETE FROM repositories WHERE id = 2")
        assert run("expand", "--down", answer="n\n").exit_code == 1
        assert "migration_status" in columns(connection)
        assert len(done(run("expand", "--down", "--yes", "--json"))) == 1
        assert (columns(connection), checks(connection)) == (before, {})
        assert done(run("expand", "--down", "--yes", "--json")) == []


@pytest.mark.stack
class TestReleaseN1:
    """Backfill rows created before N, setting them to native."""

    def test_release_is_refused_before_the_column_exists(self, run: Run) -> None:
        assert "run `headrace schema expand status_backfills` first" in refused(run("backfill"))

    def test_backfill_is_refused_while_paused_or_disabled(
        self, run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run("expand")
        set_paused(settings, StatusBackfills, "main", True)
        assert "resume it with `headrace resume status_backfills`" in refused(run("backfill"))
        monkeypatch.setenv("HEADRACE_STATUS_BACKFILLS_ENABLED", "false")
        assert "status_backfills is disabled" in refused(run("backfill"))

    def test_remaining_counts_all_rows_without_the_column_and_null_rows_with_it(
        self, migration: Migration, connection: psycopg.Connection[Any]
    ) -> None:
        insert(connection, [(1, 1), (1, 2)])
        with connection.cursor() as cursor:
            assert migration.remaining(cursor) == 2
            connection.execute(EXPANDED)
            insert_with_status(connection, {(1, 3): "native", (1, 4): None})
            assert migration.remaining(cursor) == 3

    def test_consumer_without_the_column_ends_with_remedy(
        self, settings: Settings, connection: psycopg.Connection[Any]
    ) -> None:
        insert(connection, [(1, 1)])
        RegistryFeed(settings).snapshot_of({(1, 1): None}, before=True)
        with pytest.raises(NotExpanded, match="add it with `headrace schema expand status_backfills`"):
            caught_up(settings)

    def test_only_null_rows_become_native(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        connection.execute(EXPANDED)
        insert_with_status(connection, {(1, 1): None, (2, 1): None, (1, 2): "import_failed", (1, 3): None})
        # As the stream says it: row 2 had none yet, and nothing is said of row 3.
        RegistryFeed(settings).snapshot_of(dict.fromkeys([(1, 1), (2, 1), (1, 2)]), before=True)
        assert caught_up(settings).applied == 2
        assert statuses(connection) == {(1, 1): "native", (2, 1): "native", (1, 2): "import_failed", (1, 3): None}
        assert writes(connection) == 2

    def test_rows_of_an_old_application_are_backfilled_as_they_come(
        self, settings: Settings, connection: psycopg.Connection[Any]
    ) -> None:
        connection.execute(EXPANDED)
        feed = RegistryFeed(settings)
        caught_up(settings)
        connection.execute("UPDATE headrace.migrations SET completed_at = now()")
        insert(connection, [(1, 1)])
        feed.send([feed.event((1, 1), None)])
        assert caught_up(settings).applied == 1


@pytest.mark.stack
class TestReleaseN2:
    """Add a non-blocking NOT NULL constraint."""

    def test_release_is_refused_before_the_column_exists(self, run: Run) -> None:
        assert "run `headrace schema expand status_backfills` first" in refused(run("contract"))

    def test_contract_is_refused_while_a_row_has_no_status(self, run: Run, connection: psycopg.Connection[Any]) -> None:
        run("expand")
        insert(connection, [(1, 1), (1, 2)])
        assert "2 rows of public.repositories have no migration_status" in refused(run("contract"))
        assert REQUIRED not in checks(connection).values()

    def test_not_null_is_a_validated_check(self, run: Run, connection: psycopg.Connection[Any]) -> None:
        run("expand")
        insert_with_status(connection, {(1, 1): "native"})
        assert len(done(run("contract", "--json"))) == 2
        assert checks(connection)["check_repositories_migration_status_not_null"] == REQUIRED
        with pytest.raises(psycopg.errors.CheckViolation):
            insert(connection, [(1, 2)])
        assert done(run("contract", "--json")) == []

    def test_contract_is_undone_when_a_row_without_status_was_written_meanwhile(
        self, run: Run, connection: psycopg.Connection[Any]
    ) -> None:
        run("expand")
        insert(connection, [(1, 1)])
        # As left by one that was killed after its first statement, just before which the row came.
        connection.execute(
            "ALTER TABLE repositories ADD CONSTRAINT check_repositories_migration_status_not_null"
            " CHECK (migration_status IS NOT NULL) NOT VALID"
        )
        assert "so it was dropped; deploy the application that writes migration_status" in refused(run("contract"))
        insert(connection, [(1, 2)])

    def test_down_allows_null_again_and_enforces_the_reverse_order(
        self, run: Run, connection: psycopg.Connection[Any]
    ) -> None:
        run("expand")
        run("contract")
        for earlier in (("backfill", "--down"), ("expand", "--down", "--yes")):
            assert "run `headrace schema contract status_backfills --down` first" in refused(run(*earlier))
        assert len(done(run("contract", "--down", "--json"))) == 1
        insert(connection, [(1, 1)])
        assert done(run("contract", "--down", "--json")) == []
