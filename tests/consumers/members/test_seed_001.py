"""Seed 001 sentence by sentence: one switchover during a migration on real servers, and the state afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from consumers.contract.migration import Shared
from consumers.delivery.topics import source_topics
from consumers.ledger.owner_lookup import owning_database
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.catalog import migrations, target_database
from consumers.testing.waiting import until
from infra.stack import embedded_stack
from schemas.errors import UsageError
from schemas.topics import schema_prefix
from tests.consumers.container_repositories import TOO_MANY_TAGS, fill
from tests.consumers.members.failover import MOVED, STAYS, World
from tests.consumers.services import Application

pytestmark = pytest.mark.stack

WRITES = (
    "SELECT id, application, database, owner FROM writes WHERE application LIKE 'headrace consume%' ORDER BY sequence"
)


@dataclass(frozen=True)
class Moved:
    """The world after the switchover; `before` are the migration's writes that the old database has logged."""

    world: World
    before: int

    def writes(self, connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
        return connection.execute(WRITES).fetchall()


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    with embedded_stack(fsync=False) as stack:
        world = World(stack, tmp_path_factory.mktemp("seed_001"), "seed001")
        names = ("produce first", "produce second", "consume skip_resets")
        services = {name: world.service(*name.split()) for name in names}
        application = Application((world.first_dsn, world.second_dsn), 1)
        try:
            until(lambda: world.resets() >= 50, "the migration is half complete")
            # No consumer receives requests made from here on before the move: they remain on the old side.
            services.pop("produce first").stop()
            with world.first() as connection:
                fill(connection, dict.fromkeys(range(1_000, 1_010), TOO_MANY_TAGS))
            moving = world.switchover()
            assert moving.wait() == 0
            services["produce first"] = world.service("produce", "first")
            stack.postgres.forget_standby(world.name)
            before = application.transactions
            until(lambda: application.transactions > before + 50, "the application continues")
            application.stop()
            world.settle()
        finally:
            for service in services.values():
                service.stop()
        yield Moved(world, world.resets())
        world.close()


def test_half_complete_migrations_are_correctly_picked_up_after_the_failover(moved: Moved) -> None:
    moved.world.prove()
    with moved.world.second() as connection:
        run = connection.execute("SELECT run, gitlab_schema FROM headrace.migrations").fetchall()
        assert run == [(1, MOVED)], "the same run continues"
        sides = {database for _, _, database, _ in moved.writes(connection)}
        assert sides == {"first", "second"}, "started on one side, completed on the other"


def test_we_do_not_duplicate_our_efforts_against_the_wrong_database(moved: Moved) -> None:
    with moved.world.first() as first, moved.world.second() as second:
        old, new = moved.writes(first), moved.writes(second)
        assert new[: len(old)] == old, "every write of the old side was before the copy was promoted"
        assert {(database, owner) for *_, database, owner in new[len(old) :]} == {("second", "second")}


def test_we_do_not_miss_a_migration_after_the_failover(moved: Moved) -> None:
    done = moved.world.command("verify", "skip_resets", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["database"], found["remaining"]) == ("second", 0)


def test_we_do_not_run_against_stale_data_on_the_wrong_database(moved: Moved) -> None:
    with moved.world.first() as first:
        stale = first.execute(
            "SELECT count(*) FROM container_repositories"
            " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2"
        ).fetchone()
        assert stale is not None
        assert stale[0] >= 10, "rows that the old side would still have changed"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="gitlab_main is owned by second"):
            first.execute("UPDATE container_repositories SET name = name")
    assert moved.world.resets() == moved.before


def test_the_gitlab_schema_is_stored_in_the_tracking_table(moved: Moved) -> None:
    with moved.world.second() as connection:
        assert connection.execute("SELECT name, gitlab_schema FROM headrace.migrations").fetchall() == [
            ("skip_resets", MOVED)
        ]


def test_a_worker_only_reads_what_its_connection_may_use(moved: Moved) -> None:
    settings = moved.world.settings
    for kind in migrations(settings).values():
        own = schema_prefix(settings.prefix, kind.gitlab_schema)
        assert all(topic.startswith(own) for topic in source_topics(settings, kind, "second"))


def test_once_split_the_new_worker_fetches_the_migrations_of_its_schema(moved: Moved) -> None:
    settings = moved.world.settings
    assert owning_database(settings, ["first", "second"], MOVED) == "second"
    assert owning_database(settings, ["first", "second"], STAYS) == "first"
    assert target_database(settings, migrations(settings)["skip_resets"]) == "second"


@pytest.mark.long
def test_stale_records_outside_of_a_database_are_cleaned_up_in_a_follow_up(moved: Moved) -> None:
    listed = moved.world.command("cleanup", "first", "--json")
    assert [each["migration"] for each in json.loads(listed.stdout)["stale"]] == ["skip_resets"]
    removed = moved.world.command("cleanup", "first", "--yes")
    assert removed.stdout.startswith("removed  first: skip_resets (gitlab_main, owned by second): run 1, ")
    assert moved.world.command("cleanup", "first").stdout == "first has no stale records\n"
    assert moved.world.command("cleanup", "--yes").stdout.splitlines() == [
        "first has no stale records", "second has no stale records",
    ]  # fmt: skip
    with moved.world.second() as connection:
        assert connection.execute("SELECT count(*) FROM headrace.migrations").fetchone() == (1,)


class OfShared(SkipResets):
    """Reads a table that every database has; never run."""

    name = "of_shared"
    gitlab_schema = "gitlab_shared"
    tables = ("public.detached_partitions",)


class OfEach(OfShared):
    """Declares that it may run once per database."""

    shared = Shared.PER_DATABASE


def test_a_migration_on_gitlab_shared_is_forbidden_or_scheduled_once_per_database(moved: Moved) -> None:
    databases = moved.world.settings.databases
    section = databases["second"].model_copy(update={"gitlab_schemas": ("gitlab_shared",)})
    settings = moved.world.settings.model_copy(update={"databases": {"second": section}})
    with pytest.raises(UsageError, match="gitlab_shared tables, which every database has"):
        target_database(settings, OfShared)
    assert target_database(settings, OfEach) == "second"
    topics = {name: source_topics(settings, OfEach, name) for name in ("first", "second")}
    assert topics["first"] != topics["second"]
