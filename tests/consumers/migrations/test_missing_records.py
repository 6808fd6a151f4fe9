"""Seed 000, sentence by sentence: new records, unchanged ones, and when a virtual storage is imported."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from consumers.contract.decisions import Skip
from consumers.migrations.missing_records import MissingRecords
from tests.conftest import Database
from tests.consumers.importing import World, configured, end, event, made, member_of, paths, wait_for_a_lock
from tests.consumers.praefect_database import checksum, flags, hosts, records, track, written

# "In the past, Praefect did not create a database records for hosted repositories. … The importer walks the primary
# storage of each virtual storage and creates a record for each repository existing on the primary."


@pytest.mark.stack
def test_creates_a_record_for_each_repository_existing_on_the_primary(world: World) -> None:
    assert world.walk(paths(60)) == 61
    assert records(world.connection).keys() == set(paths(60))
    assert {record[:2] for record in records(world.connection).values()} == {(0, None)}
    assert hosts(world.connection) == {path: {"gitaly-0": 0} for path in paths(60)}


@pytest.mark.stack
def test_creates_records_in_each_virtual_storage(world: World) -> None:
    world.walk(paths(3))
    world.walk(paths(3), virtual_storage="other", storage="gitaly-9")
    for name, storage in (("default", "gitaly-0"), ("other", "gitaly-9")):
        assert hosts(world.connection, name) == {path: {storage: 0} for path in paths(3)}


@pytest.mark.stack
def test_a_record_of_the_new_schema_has_the_path_where_praefect_looks_for_it(new_world: World) -> None:
    new_world.walk(paths(3))
    assert records(new_world.connection) == {path: (0, None, path) for path in paths(3)}
    joined = new_world.connection.execute(
        "SELECT count(*) FROM repositories JOIN storage_repositories USING (repository_id, relative_path)"
        " WHERE verified_at IS NULL"
    ).fetchone()
    assert joined == (3,)
    assert new_world.connection.execute("SELECT count(*) FROM repository_assignments").fetchone() == (0,)


@pytest.mark.stack
def test_intermediate_praefect_schema_is_supported(database: Database) -> None:
    between = made(database, "old")
    between.connection.execute("ALTER TABLE repositories ADD COLUMN repository_id bigserial UNIQUE")
    between.walk(paths(2))
    between.connection.execute("ALTER TABLE repositories ADD COLUMN replica_path text")
    between.walk(paths(2), virtual_storage="other")
    assert records(between.connection) == dict.fromkeys(paths(2), (0, None, None))
    assert records(between.connection, "other") == {path: (0, None, path) for path in paths(2)}
    assert hosts(between.connection) == hosts(between.connection, "other")


@pytest.mark.stack
def test_written_tables_are_those_of_the_health_indicators(world: World) -> None:
    for table in MissingRecords.writes:
        assert world.connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() != (None,)


# "Praefect tracks repositories and the storage's hosting copies of them … Various components, including the automatic
# reconciler, operate only based on these database records. … The created records can then be picked up by the automatic
# reconciler which will replicate the repositories to the secondaries and create their records."


@pytest.mark.stack
def test_the_created_records_can_be_picked_up_by_the_automatic_reconciler(world: World) -> None:
    world.walk(paths(2))
    # It searches a storage that lacks the newest generation of a repository, and one that has it.
    jobs = world.connection.execute(
        "SELECT r.relative_path, s.storage, m.storage FROM repositories r"
        " JOIN storage_repositories s USING (virtual_storage, relative_path, generation)"
        " CROSS JOIN (VALUES ('gitaly-0'), ('gitaly-1')) m(storage)"
        " WHERE NOT EXISTS (SELECT FROM storage_repositories h WHERE h.virtual_storage = r.virtual_storage"
        " AND h.relative_path = r.relative_path AND h.storage = m.storage AND h.generation = r.generation)"
    ).fetchall()
    assert sorted(jobs) == sorted((path, "gitaly-0", "gitaly-1") for path in paths(2))


# "Repositories on secondaries are ignored by the importer."


def test_repositories_on_secondaries_are_ignored() -> None:
    secondary = event(storage="gitaly-1", is_primary=False)
    assert configured().decide(secondary) == Skip("not the primary storage")
    assert configured({"default": ("gitaly-0", "praefect")}).decide(secondary) == Skip("not the primary storage")


def test_former_primary_is_a_secondary() -> None:
    chosen = configured({"default": ("gitaly-1", "praefect")})
    assert chosen.decide(event()) == Skip("not the primary storage")
    assert chosen.decide(event(**end(repositories=1))) == Skip("not the primary storage")


def test_virtual_storage_not_in_the_settings_is_skipped() -> None:
    chosen = configured({"other": ("gitaly-0", "praefect")})
    assert chosen.decide(event()) == Skip("virtual storage not in the settings")


@pytest.mark.stack
def test_virtual_storage_of_another_database_is_skipped(world: World) -> None:
    world.migration = configured({"default": ("gitaly-0", "elsewhere"), "other": ("gitaly-0", "praefect")})
    assert world.walk(paths(3)) == 0
    assert (records(world.connection), flags(world.connection)) == ({}, {})
    assert world.walk(paths(3), virtual_storage="other") == 4


# "If a repository is missing database records and it receives a write, Praefect follows it's previous behavior …"


@pytest.mark.stack
def test_repository_created_during_the_walk_is_neither_duplicated_nor_overwritten(world: World) -> None:
    praefect = member_of(world.database, "praefect")
    praefect.autocommit = False
    track(praefect, paths(1), generation=3)
    with ThreadPoolExecutor(1) as pool:
        found = [{"relative_path": path} for path in paths(3)]
        applied = pool.submit(lambda: world.apply(*found, end(repositories=3)))
        wait_for_a_lock(world)
        before = checksum(praefect, paths(1))
        praefect.commit()
        assert applied.result(180) == 3
    assert checksum(world.connection, paths(1)) == before
    assert records(world.connection).keys() == set(paths(3))
    assert hosts(world.connection)[paths(1)[0]] == {"gitaly-0": 3, "gitaly-1": 3}


@pytest.mark.stack
def test_record_with_another_name_counts_as_a_record(world: World) -> None:
    track(world.connection, ["@hashed/a.git"])
    known = set(records(world.connection))
    # A path in which Praefect itself creates a repository; in the new schema it is that record's replica path.
    assert world.walk(["@cluster/repositories/aa/bb/@hashed/a.git", "@cluster/repositories/cc/dd/7"]) == 1
    assert records(world.connection).keys() == known
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
def test_replica_path_of_a_record_is_not_missing(new_world: World) -> None:
    new_world.connection.execute(
        "INSERT INTO repositories (virtual_storage, relative_path, replica_path)"
        " VALUES ('default', 'renamed.git', 'first-name.git')"
    )
    assert new_world.walk(["first-name.git"]) == 1
    assert records(new_world.connection).keys() == {"renamed.git"}


# "Once the migration has been successfully completed, a flag in the database is set to prevent the migration from
# running again unnecessarily."


@pytest.mark.stack
def test_once_completed_a_flag_is_set(world: World) -> None:
    assert world.remaining() == 0  # no virtual storage is recorded yet
    world.apply({"relative_path": paths(1)[0]})
    assert (flags(world.connection), world.remaining()) == ({}, 1)
    assert world.apply(end(repositories=1)) == 1
    assert (flags(world.connection), world.remaining()) == ({"default": True}, 0)


@pytest.mark.stack
def test_existing_unset_flag_is_set(world: World) -> None:
    world.connection.execute("INSERT INTO virtual_storages VALUES ('default', false)")
    assert world.remaining() == 1
    world.walk(paths(2))
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
def test_the_flag_prevents_the_migration_from_running_again(world: World) -> None:
    world.connection.execute("INSERT INTO virtual_storages VALUES ('default', true)")
    assert world.walk(paths(3)) == 0
    assert records(world.connection) == {}
    assert world.walk(paths(3), virtual_storage="other") == 4


@pytest.mark.stack
def test_flag_is_set_only_after_every_partitions_end_of_one_walk(world: World) -> None:
    a, b, c = ({"relative_path": path} for path in paths(3))
    assert world.apply(a, end(repositories=2, partitions=2)) == 1
    # The other partition is still at the previous walk, whose end does not count for this one.
    assert world.apply({**c, "walk_id": 0}, end(0, repositories=1, partitions=2, partition=1)) == 1
    assert flags(world.connection) == {}
    assert world.apply(b, end(repositories=2, partitions=2, partition=1)) == 2
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
def test_last_two_ends_applied_concurrently_by_two_consumers_set_the_flag(world: World) -> None:
    first, second = member_of(world.database), member_of(world.database)
    a, b = ({"relative_path": path} for path in paths(2))
    with ThreadPoolExecutor(1) as pool, first.transaction():
        world.apply(a, end(repositories=2, partitions=2), connection=first)
        applied = pool.submit(world.apply, b, end(repositories=2, partitions=2, partition=1), connection=second)
        wait_for_a_lock(world)
    assert applied.result() == 2
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
@pytest.mark.parametrize(
    "columns",
    [{"complete": False}, {"problems": 1}, {"repositories": 3}, {"repositories": 1}],
    ids=[
        "a directory was not read",
        "a name cannot be recorded",
        "one became a dead letter",
        "one leads out of the storage",
    ],
)
def test_incomplete_walk_sets_no_flag(world: World, columns: dict[str, Any]) -> None:
    a, b = ({"relative_path": path} for path in paths(2))
    assert world.apply(a, b, {**end(repositories=2), **columns}) == 2
    assert flags(world.connection) == {}
    assert world.remaining() == 1
    ((name, reason),) = world.given_up()
    assert name == "default"
    assert reason.startswith("not imported by walk 1: ")
    assert world.walk(paths(2), walk_id=2) == 1
    assert flags(world.connection) == {"default": True}
    assert world.given_up() == []


@pytest.mark.stack
def test_empty_walk_of_a_storage_with_records_sets_no_flag(world: World) -> None:
    track(world.connection, paths(2))
    assert world.walk([]) == 0
    assert flags(world.connection) == {}
    assert "is it mounted?" in world.given_up()[0][1]
    assert world.walk([], virtual_storage="empty") == 1
    assert flags(world.connection) == {"empty": True}


@pytest.mark.stack
def test_retried_dead_letter_completes_its_walk(world: World) -> None:
    a, b = ({"relative_path": path} for path in paths(2))
    assert world.apply(a, end(repositories=2)) == 1
    assert flags(world.connection) == {}
    assert world.apply(b) == 1, "the flag is not counted as a change"
    assert flags(world.connection) == {"default": True}


# "If the importer does not run to completion, it is safe to rerun."


@pytest.mark.stack
def test_if_it_does_not_run_to_completion_it_is_safe_to_rerun(world: World) -> None:
    assert world.apply(*({"relative_path": path} for path in paths(5))) == 5
    before = checksum(world.connection, paths(5))
    assert world.walk(paths(9), walk_id=2) == 5
    assert checksum(world.connection, paths(5)) == before
    assert written(world.connection).count(f"INSERT {paths(1)[0]}") == 1
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
def test_counts_of_a_killed_walk_do_not_affect_the_next(world: World) -> None:
    world.apply(*({"relative_path": path} for path in paths(3)))
    assert world.apply(*({"relative_path": path, "walk_id": 2} for path in paths(1)), end(2, repositories=3)) == 0
    assert flags(world.connection) == {}


# "Running the importer concurrently is also safe as only missing records are added and existing ones are unmodified."


@pytest.mark.stack
def test_running_concurrently_is_safe(world: World) -> None:
    track(world.connection, paths(20))
    found = [{"relative_path": path} for path in paths(120)]
    members = [member_of(world.database) for _ in range(4)]

    def work(rows: Sequence[dict[str, Any]], member: psycopg.Connection[Any]) -> int:
        return sum(world.apply(*rows[at : at + 30], connection=member) for at in range(0, 120, 30))

    # The same rows in other batches and orders: each batch inserts in key order.
    orders = (found, found[::-1], found[60:] + found[:60], found)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, orders, members)) == 100
    assert sorted(written(world.connection)) == sorted(f"INSERT {path}" for path in paths(100, start=20))


@pytest.mark.stack
def test_only_missing_records_are_added_and_existing_ones_are_unmodified(world: World) -> None:
    track(world.connection, paths(20))
    world.connection.execute("UPDATE repositories SET generation = NULL WHERE relative_path = %s", (paths(1)[0],))
    before = checksum(world.connection, paths(20))
    assert world.walk(paths(30)) == 11
    assert checksum(world.connection, paths(20)) == before
    # A repository with a record gets no row for the storage: the record already has its hosts.
    assert hosts(world.connection)[paths(1)[0]].keys() == {"gitaly-0", "gitaly-1"}


@pytest.mark.stack
def test_hosting_row_without_a_record_is_unchanged(old_world: World) -> None:
    old_world.connection.execute("INSERT INTO storage_repositories VALUES ('default', 'a.git', 'gitaly-0', 5)")
    assert old_world.walk(["a.git"]) == 2
    assert hosts(old_world.connection) == {"a.git": {"gitaly-0": 5}}


# "The import runs on each Praefect node on start up and retries on every restart until it has successfully completed."


@pytest.mark.stack
def test_it_retries_on_every_restart_until_it_has_successfully_completed(world: World) -> None:
    changed = [world.walk(paths(3), walk_id=walk_id, complete=walk_id == 3) for walk_id in (1, 2, 3, 4)]
    assert changed == [3, 0, 1, 0]
    assert written(world.connection, "virtual_storages") == ["INSERT default"]


@pytest.mark.stack
def test_replay_counts_from_zero(world: World) -> None:
    world.apply(*({"relative_path": path} for path in paths(2)))
    world.connection.execute("UPDATE headrace.migrations SET run = 2")
    assert world.walk(paths(2)) == 1
    assert flags(world.connection) == {"default": True}
