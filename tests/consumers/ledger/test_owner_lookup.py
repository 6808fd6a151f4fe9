"""Finds the database that a migration writes if several list its gitlab schema."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.ledger.owner_lookup import Answer, Answers, TwoOwners, owning_database
from consumers.operations.catalog import migration_class, target_database
from infra.postgres.control import Owner, Ownership, ensure_control_schema
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved, UsageError
from tests.conftest import Database

pytestmark = pytest.mark.stack

New = Callable[[str | None], Database]
GIVE = "UPDATE headrace.schema_ownership SET owner = 'second', epoch = epoch + 1"


def settings(first: str, second: str) -> Settings:
    listed = ["gitlab_main"]
    databases = {"first": {"dsn": first, "gitlab_schemas": listed}, "second": {"dsn": second, "gitlab_schemas": listed}}
    return Settings.model_validate({"databases": databases})


def test_owner_is_the_database_whose_own_rows_say_so(new_databases: New) -> None:
    first, second = new_databases(None), new_databases(None)
    known = settings(first.dsn, second.dsn)
    kind = migration_class(Settings(), "skip_resets")
    with pytest.raises(UsageError, match="several databases: first, second"):
        target_database(known, kind)
    for database in (first, second):  # a physical copy records itself as the original
        ensure_control_schema(database.connect(), "first", ["gitlab_main"])
    assert target_database(known, kind) == "first"

    first.connect().execute(GIVE)
    with pytest.raises(OwnershipMoved, match=r"owns gitlab_main \(first says second, second says first"):
        target_database(known, kind)
    second.connect().execute(GIVE)
    second.connect().execute("UPDATE headrace.database SET name = 'second'")
    assert target_database(known, kind) == "second"


def test_database_that_does_not_answer_is_not_the_owner(database: Database) -> None:
    known = settings(database.dsn, "postgresql://nobody@127.0.0.1:1/none")
    assert owning_database(known, ["first", "second"], "gitlab_main") is None
    ensure_control_schema(database.connect(), "first", ["gitlab_main"])
    assert owning_database(known, ["first", "second"], "gitlab_main") == "first"
    database.connect().execute(GIVE)
    with pytest.raises(OwnershipMoved, match="restart once `headrace switchover` is complete"):
        owning_database(known, ["first", "second"], "gitlab_main")


def test_two_claiming_databases_are_named_and_refused(new_databases: New) -> None:
    first, second = new_databases(None), new_databases(None)
    known = settings(first.dsn, second.dsn)
    ensure_control_schema(first.connect(), "first", ["gitlab_main"])
    ensure_control_schema(second.connect(), "second", ["gitlab_main"])
    words = r"first \(epoch 1\) and second \(epoch 1\) both claim to own gitlab_main; Stop what writes"
    with pytest.raises(TwoOwners, match=words):
        target_database(known, migration_class(known, "skip_resets"))


def test_same_database_under_two_names_is_one_owner(database: Database) -> None:
    ensure_control_schema(database.connect(), "first", ["gitlab_main"])
    assert owning_database(settings(database.dsn, database.dsn), ["first", "second"], "gitlab_main") == "first"


def test_standby_is_not_the_owner() -> None:
    owners = {"gitlab_main": Owner("second", 2)}
    standby = Answer("second", Ownership("second", True, owners))
    with pytest.raises(
        OwnershipMoved, match=r"owns gitlab_main \(second says second but is a standby; first does not ans"
    ):
        Answers((standby,), ("first",)).owner("gitlab_main")
    primary = Answer("second", Ownership("second", False, owners))
    assert Answers((standby, primary), ()).owner("gitlab_main") == "second"
    assert Answers((primary,), ()).owner("gitlab_ci") is None
