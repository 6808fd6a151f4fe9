"""The guard is installed and removed table by table, also while the tables are in use."""

from __future__ import annotations

import threading

import pytest
from psycopg import errors

from consumers.testing.waiting import until
from infra.guard import write_guard
from infra.settings.model import DatabaseSettings
from schemas.errors import Interrupted
from tests.infra.guard.guarded import LABELS, OF_CI, Connection, Guarded, of_schemas

pytestmark = pytest.mark.stack


def test_the_tables_of_a_gitlab_schema_are_found_with_their_partitions(guarded: Guarded) -> None:
    connection = guarded.admin
    connection.execute(
        "CREATE TABLE public.ci_builds (id int); CREATE TABLE public.tags (id int); CREATE TEMP TABLE ci_stages ();"
    )
    assert of_schemas(connection, ["gitlab_ci"], LABELS) == dict.fromkeys(
        sorted([*OF_CI, "public.ci_builds", "public.tags"]), "gitlab_ci"
    )
    assert list(of_schemas(connection, ["gitlab_main"], LABELS, ["gitlab_ci"])) == ["public.stays"]
    assert "public.tags" not in of_schemas(connection, ["gitlab_ci"], LABELS, ["registry"]), "which one is not known"
    other = {**LABELS, "public.part_1_1": "gitlab_main", "public.ci_builds": "gitlab_main"}
    assert list(of_schemas(connection, ["gitlab_ci"], other)) == [
        "public.moves", "public.part_1", "public.parts", "public.tags",
    ]  # fmt: skip
    assert of_schemas(connection, ["gitlab_shared"], {"public.stays": "gitlab_shared"}) == {}
    # A pattern that matches a partition does not take it from its root.
    pattern = {"public.*": "gitlab_main", "public.parts": "gitlab_ci"}
    assert list(of_schemas(connection, ["gitlab_ci"], pattern)) == ["public.part_1", "public.part_1_1", "public.parts"]


def test_tables_that_only_another_section_names_are_found(guarded: Guarded) -> None:
    own = {"dsn": "host=h", "gitlab_schemas": ["gitlab_main"], "table_schemas": {"public.moves": "gitlab_main"}}
    section = DatabaseSettings.model_validate(own)
    elsewhere = {"public.moves": "gitlab_ci", "public.stays": "gitlab_ci", "public.*": "gitlab_ci"}
    found = write_guard.tables_of(guarded.admin, ["gitlab_ci"], "main", section, elsewhere)
    assert list(found) == ["public.stays"], "its own section wins, and patterns of others do not count"


def test_second_run_only_adds_the_guard_to_new_tables(guarded: Guarded) -> None:
    assert list(write_guard.installed(guarded.admin)) == OF_CI
    assert guarded.install() == []
    guarded.admin.execute("CREATE TABLE public.part_2 PARTITION OF public.parts DEFAULT")
    assert "public.part_2" not in write_guard.installed(guarded.admin)
    assert guarded.install() == ["public.part_2"]
    guarded.give_away()
    with pytest.raises(errors.ReadOnlySqlTransaction):
        guarded.admin.execute("INSERT INTO public.part_2 VALUES (20, 20)")


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE public.moves DISABLE TRIGGER headrace_guard",
        "ALTER TABLE public.moves ENABLE TRIGGER headrace_guard",
        "DROP TRIGGER headrace_guard ON public.moves",
        "CREATE OR REPLACE TRIGGER headrace_guard BEFORE INSERT ON public.moves"
        " FOR EACH STATEMENT EXECUTE FUNCTION headrace.guard('gitlab_ci', '1')",
    ],
)
def test_broken_guard_counts_as_missing_and_is_repaired(guarded: Guarded, damage: str) -> None:
    guarded.admin.execute(damage.encode())
    assert "public.moves" not in write_guard.installed(guarded.admin)
    assert guarded.install() == ["public.moves"]
    guarded.give_away()
    with pytest.raises(errors.ReadOnlySqlTransaction):
        guarded.admin.execute("UPDATE public.moves SET n = 9")


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER FUNCTION headrace.guard() SECURITY INVOKER",
        "ALTER FUNCTION headrace.guard() RESET search_path",
        "ALTER FUNCTION headrace.guard() STABLE",
        "CREATE OR REPLACE FUNCTION headrace.guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    ],
)
def test_a_function_of_another_version_is_replaced(guarded: Guarded, damage: str) -> None:
    guarded.admin.execute(damage.encode())
    assert write_guard.installed(guarded.admin) == {}
    guarded.install()
    assert list(write_guard.installed(guarded.admin)) == OF_CI


def test_two_processes_at_once_install_it_once(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    others = [Guarded.__new__(Guarded) for _ in range(3)]
    for other in others:
        other.admin = guarded._database.connect()
    threads = [threading.Thread(target=other.install) for other in (guarded, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(write_guard.installed(guarded.admin)) == OF_CI


def test_table_in_use_is_retried_and_then_reported_with_the_lock_holder(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    writer = guarded.application(autocommit=False)
    writer.execute("SET application_name = 'a long transaction'")
    writer.execute("UPDATE public.moves SET n = 9 WHERE id = 1")
    words = rf"public.moves stayed in use, at last by a long transaction \(process {writer.info.backend_pid}\)"
    with pytest.raises(write_guard.TableInUse, match=words):
        guarded.install(seconds=0.0)
    assert write_guard.installed(guarded.admin) == {}, "its tables are in order, and this is the first"
    stop = threading.Event()
    installed: list[str] = []
    installing = threading.Thread(target=lambda: installed.extend(guarded.install(stop=stop)))
    with guarded._database.connect() as other:
        installing.start()
        until(lambda: waits_for_a_table(other), "the installation waits for the table")
        until(lambda: not waits_for_a_table(other), "it lets others in again")
        other.execute("UPDATE public.moves SET n = 9 WHERE id = 2")
        writer.commit()
    installing.join()
    assert installed == OF_CI


def waits_for_a_table(connection: Connection) -> bool:
    row = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted").fetchone()
    return row != (0,)


def test_guards_installed_before_a_failure_stay_and_the_next_run_continues(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    writer = guarded.application(autocommit=False)
    writer.execute("LOCK TABLE ONLY public.part_1_1 IN ROW EXCLUSIVE MODE")
    with pytest.raises(write_guard.TableInUse, match=r"public\.part_1_1 stayed in use"):
        guarded.install(seconds=0.0)
    assert list(write_guard.installed(guarded.admin)) == ["public.moves", "public.part_1"]
    writer.rollback()
    assert guarded.install() == ["public.part_1_1", "public.parts"]


def test_stopped_run_keeps_the_installed_guards(guarded: Guarded) -> None:
    stop = threading.Event()
    stop.set()
    write_guard.remove(guarded.admin, ["gitlab_ci"])
    with pytest.raises(Interrupted):
        guarded.install(stop=stop)
    assert guarded.install() == OF_CI


def test_gitlab_schema_without_an_owner_is_refused(guarded: Guarded) -> None:
    """Its tables would refuse everybody's writes."""
    with pytest.raises(write_guard.NotGuardable, match="no database owns gitlab_pm, so the guard would refuse every"):
        write_guard.install(guarded.admin, "gitlab_pm", ["public.stays"])
    guarded.admin.execute("UPDATE public.stays SET id = id")


def test_removed_the_tables_take_writes_again(guarded: Guarded) -> None:
    guarded.give_away()
    write_guard.install(guarded.admin, "gitlab_main", ["public.stays"])
    assert write_guard.remove(guarded.admin, ["gitlab_ci"]) == OF_CI
    assert write_guard.remove(guarded.admin, ["gitlab_ci"]) == []
    assert write_guard.installed(guarded.admin) == {"public.stays": "gitlab_main"}
    guarded.application().execute("UPDATE public.moves SET n = 9")
    assert write_guard.remove(guarded.admin) == ["public.stays"]
    assert guarded.admin.execute("SELECT to_regprocedure('headrace.guard()')").fetchone() == (None,)


def test_a_table_in_use_keeps_its_guard(guarded: Guarded) -> None:
    """To drop a trigger takes the table alone: not even readers may hold it."""
    with guarded._database.connect() as reader, reader.transaction():
        reader.execute("LOCK TABLE ONLY public.parts IN ACCESS SHARE MODE")
        words = rf"public\.parts stayed in use, .* a session \(process {reader.info.backend_pid}\)"
        with pytest.raises(write_guard.TableInUse, match=words):
            write_guard.remove(guarded.admin, seconds=0.0)
    assert "public.parts" in write_guard.installed(guarded.admin)
    write_guard.remove(guarded.admin)


def test_removing_headrace_removes_the_guard(guarded: Guarded) -> None:
    guarded.give_away()
    guarded.admin.execute("DROP SCHEMA headrace CASCADE")
    assert guarded.application().execute("UPDATE public.moves SET n = 9").rowcount == 2
