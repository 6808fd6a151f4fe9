"""The administrator's script on a real server: the role's privileges afterwards, and their limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from consumers.ledger import fence
from consumers.ledger.progress import Advance, Ledger, Place
from consumers.migrations.skip_resets import SkipResets
from infra.postgres.connect import connect
from infra.postgres.control import PUBLISHED, ensure_control_schema
from infra.postgres.heartbeat import beat
from infra.settings.model import DatabaseSettings, KafkaSettings, MigrationSettings, Settings
from infra.stack import Stack
from infra.state.snapshot_requests import SnapshotRequest, send_request
from producers.source import preflight, slots
from producers.source.publication import ensure_publication, read_publication
from producers.source.tables import captured_tables
from schemas.positions import Offset
from tests.administering import whole_script
from tests.conftest import Database
from tests.consumers.container_repositories import TABLE

PASSWORD = "s3cret-of-the-test"


@dataclass(frozen=True)
class Prepared:
    """A database on which the script was run, and what its role connects with."""

    settings: Settings
    superuser: psycopg.Connection
    dsn: str
    role: str

    @property
    def main(self) -> DatabaseSettings:
        return self.settings.database("main")

    def connect(self) -> psycopg.Connection:
        return connect(self.dsn, name="test")


@pytest.fixture
def prepared(stack: Stack, database: Database) -> Iterator[Prepared]:
    role = f"role-of {database.name}"  # needs quoting everywhere
    dsn = make_conninfo(database.dsn, user=role, password=PASSWORD)
    settings = Settings(
        prefix="t",
        kafka=KafkaSettings(bootstrap_servers=stack.endpoints.bootstrap_servers),
        databases={
            "main": DatabaseSettings(
                dsn=SecretStr(dsn),
                gitlab_schemas=("gitlab_main", "gitlab_shared"),
                tables=("public.container_repositories", "stock.odd_name"),
                table_schemas={"stock.odd_name": "gitlab_main"},
                slot=database.name,
            )
        },
        migrations={"skip_resets": MigrationSettings()},
    )
    with database.connect() as superuser:
        superuser.execute(TABLE)
        superuser.execute("CREATE SCHEMA stock; CREATE TABLE stock.odd_name (id bigint PRIMARY KEY)")
        superuser.execute("CREATE TABLE public.secrets (id bigint PRIMARY KEY)")
        superuser.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database.name)))
        script = whole_script(settings)
        superuser.execute(script)
        superuser.execute(script)  # may be run again
        name = sql.Identifier(role)
        superuser.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(PASSWORD)))
        try:
            yield Prepared(settings, superuser, dsn, role)
        finally:
            superuser.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def test_no_password_passes_through_the_script(prepared: Prepared) -> None:
    assert PASSWORD not in whole_script(prepared.settings)


def test_the_role_passes_the_producers_preflight_and_can_do_its_work(prepared: Prepared) -> None:
    main = prepared.main
    slot = slots.slot_name(prepared.settings, "main", main)
    with prepared.connect() as connection:
        assert list(preflight.findings(connection, "main", main, slot, "t")) == []
        ensure_control_schema(connection, "main", main.gitlab_schemas)
        tables = captured_tables(connection, "main", main, "t")
        assert not ensure_publication(connection, main.publication, tables), "it is right already"
        assert slots.system_identifier(connection)
        slots.create(connection, slot, failover=True)
        try:
            beat(connection)
            send_request(connection, SnapshotRequest(table="public.container_repositories"))
            with connection.cursor().copy("COPY (SELECT * FROM public.container_repositories) TO STDOUT") as rows:
                assert list(rows) == []
        finally:
            slots.drop(connection, slot)


def test_the_role_can_fence_keep_its_ledger_and_change_rows(prepared: Prepared) -> None:
    prepared.superuser.execute(
        "INSERT INTO container_repositories (id, project_id, name, migration_state, migration_skipped_reason)"
        " VALUES (1, 1, 'r', 'import_skipped', 2)"
    )
    # The table of the tests logs writes through a trigger, which is the application's right to grant.
    prepared.superuser.execute(sql.SQL("GRANT INSERT ON public.writes TO {}").format(sql.Identifier(prepared.role)))
    ledger = Ledger("skip_resets", "gitlab_main", "test")
    place = Place("topic", 0)
    migration = SkipResets.configure(MigrationSettings())
    with prepared.connect() as connection:
        ensure_control_schema(connection, "main", prepared.main.gitlab_schemas)
        run = ledger.begin(connection)
        ledger.open(connection, run, {place: "id"})
        with connection.transaction(), connection.cursor() as cursor:
            fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")
            cursor.execute("UPDATE public.container_repositories SET migration_state = 'default' WHERE id = 1")
            assert cursor.rowcount == 1
            assert migration.remaining(cursor) == 0
            ledger.advance(cursor, run, [Advance(place, Offset(0), Offset(1), changes=1)], 1)
        assert ledger.read(connection, run)[place].next_offset == 1


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE public.container_repositories",
        "TRUNCATE public.container_repositories",
        "DELETE FROM public.container_repositories",
        "INSERT INTO stock.odd_name VALUES (1)",
        "ALTER TABLE public.container_repositories ADD COLUMN more text",
        "CREATE SCHEMA mine",
        "CREATE TABLE public.mine ()",
        "CREATE ROLE another",
        "SELECT * FROM public.secrets",
        "SELECT * FROM public.writes",
        "DROP PUBLICATION headrace",
        "DROP TABLE headrace.progress",
        "DELETE FROM headrace.progress",
        "UPDATE headrace.schema_ownership SET owner = 'other'",
        "UPDATE headrace.database SET name = 'other'",
        "INSERT INTO headrace.schema_ownership VALUES ('gitlab_ci', 'main')",
    ],
)
def test_role_has_no_further_privileges(prepared: Prepared, statement: str) -> None:
    with prepared.connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_second_run_of_the_script_leaves_the_publication_unchanged(prepared: Prepared) -> None:
    before = read_publication(prepared.superuser, "headrace")
    assert before is not None
    assert before.generated, "with a generated column in its replica identity a table could not be updated"
    prepared.superuser.execute(whole_script(prepared.settings))
    assert read_publication(prepared.superuser, "headrace") == before


def test_a_table_added_to_the_settings_is_added_to_the_publication(prepared: Prepared) -> None:
    main = prepared.main.model_copy(update={"tables": (*prepared.main.tables, "public.secrets")})
    wider = prepared.settings.model_copy(update={"databases": {"main": main}})
    prepared.superuser.execute(whole_script(wider))
    assert published(prepared) == {"public.container_repositories", "stock.odd_name", "public.secrets"}
    prepared.superuser.execute(whole_script(prepared.settings))
    assert published(prepared) == {"public.container_repositories", "stock.odd_name"}


def test_pattern_is_left_to_the_administrator_and_added_tables_stay(prepared: Prepared) -> None:
    main = prepared.main.model_copy(update={"tables": ("public.container_repositories", "public.secret*")})
    script = whole_script(prepared.settings.model_copy(update={"databases": {"main": main}}))
    assert "-- public.secret* is a pattern" in script
    prepared.superuser.execute("ALTER PUBLICATION headrace ADD TABLE public.secrets")
    prepared.superuser.execute("ALTER PUBLICATION headrace DROP TABLE public.container_repositories")
    prepared.superuser.execute(script)
    prepared.superuser.execute(script)
    assert published(prepared) == {"public.container_repositories", "public.secrets", "stock.odd_name"}


def published(prepared: Prepared) -> set[str]:
    found = prepared.superuser.execute(
        "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'headrace'"
    )
    tables = {name for (name,) in found}
    own = set(map(".".join, PUBLISHED))
    assert own <= tables, "a producer follows the owners of what it publishes, requests and heartbeats"
    return tables - own


def test_the_kafka_commands_are_comments_with_an_administrators_credentials(prepared: Prepared) -> None:
    settings = prepared.settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers="a:9092\nDROP TABLE t;")})
    lines = whole_script(settings).splitlines()
    commands = [line for line in lines if "kafka-acls.sh --bootstrap-server" in line]
    assert commands
    assert all(line.startswith("--   ") for line in commands), "since the rest is SQL"
    assert all("--command-config admin.properties" in line for line in commands)
    assert not [line for line in lines if line.startswith("DROP")], "a value of the settings ends no comment"


def test_consumers_get_exact_names_of_dead_letters_and_groups(prepared: Prepared) -> None:
    mine = [
        line for line in whole_script(prepared.settings).splitlines() if "User:headrace-consumer-gitlab_main " in line
    ]
    written = [line.partition("--topic ")[2] for line in mine if "--operation Write" in line]
    assert written == ["t.dead_letters.skip_resets --resource-pattern-type literal"]
    assert [line.partition("--group ")[2].split()[0] for line in mine if "--group" in line] == [
        "t.skip_resets",
        "headrace-readers",
    ]
    prefixed = [line for line in mine if line.endswith(" prefixed")]
    assert [line.partition("--topic ")[2] for line in prefixed] == ["t.gitlab_main. --resource-pattern-type prefixed"]
