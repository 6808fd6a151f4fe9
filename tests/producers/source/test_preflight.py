"""Problems that prevent reading a source, each with its remedy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from infra.settings.model import DatabaseSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from producers.source import preflight, slots
from producers.source.gaps import SilentGap
from schemas.errors import PreflightFailed
from tests.administering import whole_script
from tests.conftest import Database
from tests.producers.processes import producing, write_settings
from tests.producers.sources import Running, Source, copy_all, database_section, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect()
    connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    return connection


@pytest.fixture
def slot(database: Database) -> str:
    return f"s_{database.name}"


def found(connection: psycopg.Connection[Any], slot: str, section: DatabaseSettings | None = None) -> dict[str, str]:
    """Return problem → remedy."""
    section = section or database_section(connection.info.dsn, "public.t")
    return {each.problem: each.remedy for each in preflight.findings(connection, "main", section, slot, "p")}


def test_ready_source_has_no_findings(connection: psycopg.Connection[Any], slot: str) -> None:
    assert found(connection, slot) == {}
    slots.create(connection, slot, failover=False)
    assert found(connection, slot) == {}


def test_empty_tables_setting_is_reported(connection: psycopg.Connection[Any], slot: str) -> None:
    section = database_section(connection.info.dsn)
    problems = {"databases.main.tables is empty": "name the tables to capture, such as public.projects"}
    assert found(connection, slot, section) == problems


def test_slot_of_another_plugin_or_database_is_reported(
    connection: psycopg.Connection[Any], slot: str, new_databases: Callable[[str | None], Database]
) -> None:
    remedy = "choose another with databases.main.slot"
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    assert found(connection, slot) == {f"slot {slot} uses plugin test_decoding, not pgoutput": remedy}
    slots.drop(connection, slot)
    other = new_databases(None)
    slots.create(other.connect(), slot, failover=False)
    problem = f"slot {slot} belongs to database {other.name}, not {connection.info.dbname}"
    assert found(connection, slot) == {
        problem: f"correct databases.main.dsn, or {remedy.replace('choose another', 'choose another slot')}"
    }


def test_first_finding_is_raised_with_number_of_others(connection: psycopg.Connection[Any], slot: str) -> None:
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    section = database_section(connection.info.dsn, "public.gone")
    with pytest.raises(PreflightFailed, match=r"source main: slot .* \(and 1 more: see `headrace check`\); choose"):
        preflight.require(connection, "main", section, slot, "p")


@pytest.fixture
def role(connection: psycopg.Connection[Any], database: Database) -> Iterator[str]:
    """The name of a role with LOGIN and no other privilege."""
    name = f"r_{database.name}"
    connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    yield name
    connection.execute(f"DROP PUBLICATION IF EXISTS headrace; DROP OWNED BY {name}; DROP ROLE {name}")


def test_role_without_privileges_is_reported(
    connection: psycopg.Connection[Any], database: Database, role: str, slot: str
) -> None:
    with psycopg.connect(make_conninfo(database.dsn, user=role, password="x"), autocommit=True) as other:
        assert found(other, slot) == {
            f"role {role} may not replicate": f'run ALTER ROLE "{role}" REPLICATION as a superuser',
            f"publication headrace does not exist and role {role} may not create it": (
                "have an administrator run what `headrace init --sql` prints"
            ),
            "table public.t may not be read by this role": (
                "GRANT SELECT ON public.t to the role of the dsn, and USAGE ON SCHEMA public"
            ),
        }
        connection.execute(f"ALTER ROLE {role} REPLICATION; GRANT SELECT ON t TO {role}")
        connection.execute("CREATE PUBLICATION headrace FOR TABLE t WITH (publish_via_partition_root = true)")
        assert found(other, slot) == {}


def test_least_privileges_are_enough(new_source: NewSource, database: Database) -> None:
    source = new_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", "public.t")
    name = f"r_{database.name}"
    dsn = make_conninfo(database.dsn, user=name, password="x")
    section = source.settings.database("main").model_copy(update={"dsn": type_of_secret(dsn)})
    source.settings = source.settings.model_copy(update={"databases": {"main": section}})
    # The role gets only what `headrace init --sql` prints.
    source.connection.execute(whole_script(source.settings))
    source.connection.execute(f"ALTER ROLE {name} PASSWORD 'x'")
    try:
        with running(source) as producer:
            producer.caught_up()
            source.connection.execute("INSERT INTO t VALUES (2)")
            producer.caught_up()
        source.require_equal("public.t")
    finally:
        source.drop_slot()
        source.connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def type_of_secret(dsn: str) -> Any:
    return DatabaseSettings.model_validate({"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}).dsn


# On a separate server with other settings.


@pytest.fixture(scope="module")
def other_server() -> Iterator[EmbeddedPostgres]:
    # Not below pytest's own directory, which other users may not enter: as root, the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        Path(place).chmod(0o755)
        keeper = Keeper()
        settings = {"wal_level": "replica", "max_slot_wal_keep_size": "-1", "max_replication_slots": "0"}
        server = EmbeddedPostgres(Path(place) / "postgres", keeper, fsync=False, settings=settings)
        server.start()
        yield server
        server.abandon()
        keeper.close()


def test_unconfigured_server_is_reported(other_server: EmbeddedPostgres) -> None:
    with other_server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
        assert found(connection, "s") == {
            "wal_level is replica, not logical": ("run ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL"),
            "max_slot_wal_keep_size is unlimited, so a stopped producer could fill the server's disk": (
                "set a limit, such as ALTER SYSTEM SET max_slot_wal_keep_size = '50GB', and SELECT pg_reload_conf(),"
                " or accept it with databases.main.allow_unlimited_wal = true"
            ),
            "every replication slot is in use": "raise max_replication_slots and restart PostgreSQL",
        }
        section = database_section(other_server.dsn(), "public.t", allow_unlimited_wal=True)
        assert len(found(connection, "s", section)) == 2


def test_role_in_rds_replication_may_replicate_on_a_simulated_rds(other_server: EmbeddedPostgres) -> None:
    """RDS's role of that name; the server is one of RDS as long as it has the role."""
    replicate = "role reader may not replicate"
    with other_server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
        connection.execute(
            "CREATE ROLE reader LOGIN PASSWORD 'x'; GRANT SELECT ON t TO reader; CREATE ROLE rds_replication"
        )
        dsn = make_conninfo(other_server.dsn(), user="reader", password="x")
        try:
            with psycopg.connect(dsn, autocommit=True) as reader:
                before = found(reader, "s")
                assert before[replicate] == 'run GRANT rds_replication TO "reader" as a member of rds_superuser'
                assert before["wal_level is replica, not logical"].startswith("set rds.logical_replication = 1 in the")
                section = database_section(dsn, "public.t", provider="cloudsql")
                elsewhere = found(reader, "s", section)
                assert elsewhere[replicate].startswith(
                    'run ALTER ROLE "reader" REPLICATION as a member of cloudsqlsuper'
                )
                connection.execute("GRANT rds_replication TO reader")
                assert found(reader, "s").keys() == before.keys() - {replicate}
                assert found(reader, "s", section).keys() == elsewhere.keys(), "the settings win"
        finally:
            connection.execute("DROP OWNED BY reader; DROP ROLE reader; DROP ROLE rds_replication")


def test_wrong_database_is_reported(new_source: NewSource, other_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The same settings with the dsn of another cluster that also has such a table."""
    source = new_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", "public.t")
    copy_all(source)
    with other_server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
        for name, value in (("wal_level", "logical"), ("max_replication_slots", "5")):
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    other_server.restart()
    dsn = type_of_secret(other_server.dsn())
    section = source.settings.database("main").model_copy(update={"dsn": dsn, "allow_unlimited_wal": True})
    settings = source.settings.model_copy(update={"databases": {"main": section}})
    error = Running(Source(settings, source.connection)).ended()
    assert isinstance(error, SilentGap)
    assert "the topics of main come from database system" in str(error)
    with producing(write_settings(settings, tmp_path / "headrace.toml")) as process:
        assert process.ended() == 3
        *_, line = process.log.read_text().splitlines()
        assert line.startswith("headrace: error: the topics of main come from database system")
    with other_server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)
