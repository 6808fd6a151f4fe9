"""What a switchover left behind is listed and removed; what a database owns, or may get back, is not."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from consumers.cleanup import remove, stale_records
from consumers.ledger import Ledger, Place
from consumers.migrations.skip_resets import SkipResets
from infra.control import WrongDatabase, ensure_control_schema
from infra.settings import Settings
from tests.conftest import Database

pytestmark = pytest.mark.stack

New = Callable[[str | None], Database]


def names(connection: psycopg.Connection) -> list[str]:
    found = connection.execute(
        "SELECT name FROM headrace.migrations m WHERE EXISTS (SELECT FROM headrace.progress WHERE migration = m.name)"
        " ORDER BY name"
    )
    return [name for (name,) in found]


@pytest.fixture
def sides(new_databases: New) -> tuple[Database, Database]:
    """A database and its copy, in which gitlab_ci was closed and nothing more."""
    both = new_databases(None), new_databases(None)
    for database in both:
        connection = database.connect()
        ensure_control_schema(connection, "main", ["gitlab_main", "gitlab_ci"])
        for migration, gitlab_schema in (("of_main", "gitlab_main"), ("of_ci", "gitlab_ci")):
            ledger = Ledger(migration, gitlab_schema, "here:1")
            ledger.open(connection, ledger.begin(connection), {Place("t", 0): "id"})
        connection.execute(
            "UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2 WHERE gitlab_schema = 'gitlab_ci'"
        )
    return both


def settings(main: Database, ci: Database) -> Settings:
    return Settings.model_validate(
        {
            "databases": {
                "main": {"dsn": main.dsn, "gitlab_schemas": ["gitlab_main", "gitlab_ci"]},
                "ci": {"dsn": ci.dsn, "gitlab_schemas": ["gitlab_ci"]},
            }
        }
    )


def test_each_side_loses_what_the_other_owns_and_keeps_its_own(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    ci.connect().execute("UPDATE headrace.database SET name = 'ci'")
    known = settings(main, ci)
    assert [(each.migration, each.owner, each.kept) for each in stale_records(known, "main")] == [("of_ci", "ci", None)]
    for _ in range(2):  # the second time there is nothing left
        remove(known, "main")
        remove(known, "ci")
        assert (names(main.connect()), names(ci.connect())) == (["of_main"], ["of_ci"])


def test_in_the_middle_of_a_switchover_nothing_is_removed(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    known = settings(main, ci)
    (stale,) = stale_records(known, "main")
    assert stale.kept == "ci does not confirm that it owns gitlab_ci"
    assert remove(known, "main") == []
    assert names(main.connect()) == ["of_ci", "of_main"]


def test_an_owner_that_cannot_be_asked_keeps_the_record(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    known = settings(main, ci)
    alone = known.model_copy(update={"databases": {"main": known.database("main")}})
    assert [each.kept for each in stale_records(alone, "main")] == ["ci is not in the settings, and cannot be asked"]


def test_a_database_that_the_settings_call_wrongly_is_left_alone(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    with pytest.raises(WrongDatabase, match="call this database ci, but it is on record as main"):
        remove(settings(main, ci), "ci")


def test_what_a_migration_declares_now_counts_not_what_its_ledger_was_begun_for(
    sides: tuple[Database, Database],
) -> None:
    """A corrected label: the ledger says gitlab_ci, which was given away, but the migration writes gitlab_main."""
    main, ci = sides
    ci.connect().execute("UPDATE headrace.database SET name = 'ci'")
    for database in sides:
        ledger = Ledger(SkipResets.name, "gitlab_ci", "here:1")
        connection = database.connect()
        ledger.open(connection, ledger.begin(connection), {Place("t", 0): "id"})
    known = settings(main, ci)
    assert [each.migration for each in stale_records(known, "main")] == ["of_ci"]
    assert [(each.migration, each.gitlab_schema) for each in stale_records(known, "ci")] == [
        ("of_main", "gitlab_main"),
        ("skip_resets", "gitlab_main"),
    ]
    remove(known, "main")
    assert names(main.connect()) == ["of_main", "skip_resets"]
