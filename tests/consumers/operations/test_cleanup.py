"""Records that a switchover left behind are listed and removed, unless the database owns or may regain the schema."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import psycopg
import pytest

from consumers.ledger.progress import Ledger, Place
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.cleanup import remove, stale_records
from consumers.testing.waiting import until
from infra.postgres.advisory_locks import ownership_key
from infra.postgres.control import WrongDatabase, ensure_control_schema
from infra.settings.model import Settings
from tests.conftest import Database
from tests.consumers.services import advisory_lock_is_waited_for

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
    """A database and its copy, in which only gitlab_ci was closed."""
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


def test_cleanup_removes_only_records_of_the_other_side(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    ci.connect().execute("UPDATE headrace.database SET name = 'ci'")
    known = settings(main, ci)
    assert [(each.migration, each.owner, each.kept) for each in stale_records(known, "main")] == [("of_ci", "ci", None)]
    for _ in range(2):  # cleanup is idempotent
        remove(known, "main")
        remove(known, "ci")
        assert (names(main.connect()), names(ci.connect())) == (["of_main"], ["of_ci"])


def test_cleanup_removes_nothing_during_a_switchover(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    known = settings(main, ci)
    (stale,) = stale_records(known, "main")
    assert stale.kept == ("no reachable database owns gitlab_ci (main says ci, ci says ci but is recorded as main)")
    assert remove(known, "main") == []
    assert names(main.connect()) == ["of_ci", "of_main"]


def test_cleanup_keeps_record_whose_owner_is_unreachable(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    known = settings(main, ci)
    alone = known.model_copy(update={"databases": {"main": known.database("main")}})
    assert [each.kept for each in stale_records(alone, "main")] == [
        "no reachable database owns gitlab_ci (main says ci)"
    ]


def test_cleanup_refuses_database_with_wrong_name_in_settings(sides: tuple[Database, Database]) -> None:
    main, ci = sides
    with pytest.raises(WrongDatabase, match="call this database ci, but it is recorded as main"):
        remove(settings(main, ci), "ci")


def test_cleanup_uses_the_declared_gitlab_schema_not_the_ledgers(
    sides: tuple[Database, Database],
) -> None:
    """A corrected label: the ledger has gitlab_ci, which was given away, but the migration writes gitlab_main."""
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


class Chain:
    """Three databases with the record of a migration of gitlab_ci, each with its record of the owner."""

    def __init__(self, new: New) -> None:
        self.databases = {name: new(None) for name in ("first", "second", "third")}
        for database in self.databases.values():
            connection = database.connect()
            ensure_control_schema(connection, "first", ["gitlab_ci"])
            ledger = Ledger("of_ci", "gitlab_ci", "here:1")
            ledger.open(connection, ledger.begin(connection), {Place("t", 0): "id"})

    def says(self, database: str, owner: str, epoch: int, *, name: str | None = None) -> None:
        """Record `owner` in `database`, whose recorded name is `name` if given."""
        connection = self.databases[database].connect()
        connection.execute("UPDATE headrace.database SET name = %s", (name or database,))
        connection.execute("UPDATE headrace.schema_ownership SET owner = %s, epoch = %s", (owner, epoch))

    def settings(self, **other: str) -> Settings:
        """Return settings with all three, with other dsns for some."""
        dsns = {name: database.dsn for name, database in self.databases.items()} | other
        sections = {name: {"dsn": dsn, "gitlab_schemas": ["gitlab_ci"]} for name, dsn in dsns.items()}
        return Settings.model_validate({"databases": sections})

    def has_record(self, database: str) -> bool:
        return names(self.databases[database].connect()) == ["of_ci"]


@pytest.fixture
def chain(new_databases: New) -> Chain:
    return Chain(new_databases)


NOBODY = "postgresql://nobody@127.0.0.1:1/none"


def test_cleanup_removes_first_owners_record_after_a_second_move(chain: Chain) -> None:
    chain.says("first", "second", 2)
    chain.says("second", "third", 3)
    chain.says("third", "third", 3)
    known = chain.settings()
    assert [(each.owner, each.kept) for each in stale_records(known, "first")] == [("third", None)]
    assert [each.owner for each in remove(known, "first")] == ["third"]
    assert [each.owner for each in remove(known, "second")] == ["third"]
    assert remove(known, "third") == []
    assert [chain.has_record(name) for name in chain.databases] == [False, False, True]


def test_cleanup_after_two_moves_does_not_need_the_middle_database(chain: Chain) -> None:
    chain.says("first", "second", 2)
    chain.says("third", "third", 3)
    assert [each.owner for each in remove(chain.settings(second=NOBODY), "first")] == ["third"]


def test_cleanup_after_moves_and_back_keeps_only_the_owners_record(chain: Chain) -> None:
    """The schema moved from first to second, to third, and to a new second, a copy of third."""
    chain.says("first", "second", 2)
    chain.says("third", "second", 4)
    chain.says("second", "second", 4)
    known = chain.settings()
    assert remove(known, "second") == []
    assert [each.owner for each in remove(known, "first")] == ["second"]
    assert [each.owner for each in remove(known, "third")] == ["second"]
    assert chain.has_record("second")


def test_cleanup_keeps_record_during_a_second_move(chain: Chain) -> None:
    chain.says("first", "second", 2)
    chain.says("second", "third", 3)
    chain.says("third", "third", 3, name="second")  # promoted, and not open yet
    known = chain.settings()
    (stale,) = stale_records(known, "first")
    assert stale.owner == "second"
    assert stale.kept == (
        "no reachable database owns gitlab_ci (first says second, second says third, third says"
        " third but is recorded as second)"
    )
    assert remove(known, "first") == []
    assert chain.has_record("first")


def test_cleanup_keeps_record_while_the_owner_is_unreachable(chain: Chain) -> None:
    chain.says("first", "second", 2)
    chain.says("second", "third", 3)
    (stale,) = stale_records(chain.settings(third=NOBODY), "first")
    assert stale.kept == (
        "no reachable database owns gitlab_ci (first says second, second says third; third does not answer)"
    )
    assert remove(chain.settings(third=NOBODY), "first") == []


def test_cleanup_keeps_records_if_two_databases_claim_ownership(chain: Chain) -> None:
    chain.says("first", "second", 2)
    chain.says("second", "second", 2)
    chain.says("third", "third", 3)
    known = chain.settings()
    (stale,) = stale_records(known, "first")
    assert stale.kept == "second (epoch 2) and third (epoch 3) both claim to own gitlab_ci"
    assert remove(known, "first") == []
    assert all(chain.has_record(name) for name in chain.databases)


def test_cleanup_keeps_record_of_database_that_regained_ownership(chain: Chain) -> None:
    """Ownership is checked again under the lock: a database that regained it meanwhile keeps its record."""
    chain.says("first", "second", 2)
    chain.says("second", "second", 2)
    known = chain.settings()
    connection = chain.databases["first"].connect()
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ownership_key("gitlab_ci"),))
        removing = Thread(target=remove, args=(known, "first"))
        removing.start()
        until(lambda: advisory_lock_is_waited_for(connection), "the removal waits for the lock")
        connection.execute("UPDATE headrace.schema_ownership SET owner = 'first', epoch = 3")
    removing.join()
    assert chain.has_record("first")
