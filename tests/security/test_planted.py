"""A role with CREATE that comes first: objects it plants never run as headrace, nor as the administrator."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from infra.postgres.connect import connect
from infra.postgres.control import ensure_control_schema
from infra.postgres.foreign_schema import SchemaPlanted
from infra.settings.model import DatabaseSettings, Settings
from tests.administering import whole_script
from tests.conftest import Database
from tests.consumers.container_repositories import TABLE

pytestmark = pytest.mark.stack

RAN = """
CREATE TABLE public.ran (who text);
GRANT INSERT ON public.ran TO PUBLIC;
CREATE FUNCTION public.note() RETURNS text LANGUAGE sql AS $$
    INSERT INTO public.ran VALUES (current_user) RETURNING 'main' $$;
CREATE FUNCTION public.note_row() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.ran VALUES (current_user); RETURN NEW; END $$;
"""
PLANTED_TABLE = """
CREATE SCHEMA headrace;
CREATE TABLE headrace.database (
    only_row boolean PRIMARY KEY DEFAULT true, name text, prefix text, opened_lsn pg_lsn, x text DEFAULT public.note());
GRANT USAGE ON SCHEMA headrace TO PUBLIC;
GRANT ALL ON headrace.database TO PUBLIC;
"""
PLANTED_FUNCTION = """
CREATE FUNCTION public.to_jsonb(pg_catalog.pg_publication) RETURNS jsonb LANGUAGE sql AS $$
    INSERT INTO public.ran VALUES (current_user) RETURNING '{}'::jsonb $$;
CREATE FUNCTION public.to_regprocedure(text) RETURNS regprocedure LANGUAGE sql AS $$
    INSERT INTO public.ran VALUES (current_user) RETURNING 0::regprocedure $$;
"""


@pytest.fixture
def superuser(database: Database) -> psycopg.Connection:
    connection = database.connect()
    connection.execute(TABLE)
    return connection


@pytest.fixture
def stranger(database: Database, superuser: psycopg.Connection) -> Iterator[str]:
    """The dsn of a role that may create schemas and objects in public, with functions that record who ran them."""
    role = f"stranger_{database.name}"
    name = sql.Identifier(role)
    superuser.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(name))
    superuser.execute(
        sql.SQL("GRANT CREATE ON DATABASE {} TO {}; GRANT CREATE ON SCHEMA public TO {}").format(
            sql.Identifier(database.name), name, name
        )
    )
    dsn = make_conninfo(database.dsn, user=role, password="x")
    with psycopg.connect(dsn, autocommit=True) as planting:
        planting.execute(RAN)
    yield dsn
    superuser.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(name))
    superuser.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE IF EXISTS {0}").format(sql.Identifier(f"of_{role}"))) if (
        superuser.execute("SELECT FROM pg_roles WHERE rolname = %s", (f"of_{role}",)).fetchone()
    ) else None


def settings(database: Database, stranger: str) -> Settings:
    role = f"of_{psycopg.conninfo.conninfo_to_dict(stranger)['user']}"
    section = DatabaseSettings(
        dsn=SecretStr(make_conninfo(database.dsn, user=role)),
        gitlab_schemas=("gitlab_main",),
        tables=("public.container_repositories",),
    )
    return Settings(prefix="t", databases={"main": section})


def plant(dsn: str, statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as planting:
        planting.execute(statements.encode())


def who_ran(superuser: psycopg.Connection) -> list[str]:
    return [who for (who,) in superuser.execute("SELECT who FROM public.ran")]


def test_script_runs_no_planted_function_of_the_same_name(
    database: Database, superuser: psycopg.Connection, stranger: str
) -> None:
    plant(stranger, PLANTED_FUNCTION)
    superuser.execute(whole_script(settings(database, stranger)).encode())
    assert who_ran(superuser) == []
    # Counter-check: with a session's default search path a bare name finds them.
    superuser.execute("SELECT to_jsonb(p) FROM pg_publication p")
    assert who_ran(superuser) == ["postgres"]


def test_script_and_start_refuse_a_schema_that_another_role_created(
    database: Database, superuser: psycopg.Connection, stranger: str
) -> None:
    plant(stranger, PLANTED_TABLE)
    named = "was not created by headrace or an administrator: .* is owned by role"
    with pytest.raises(psycopg.errors.RaiseException, match=named):
        superuser.execute(whole_script(settings(database, stranger)).encode())
    superuser.execute("ROLLBACK; RESET search_path")
    with connect(database.dsn, name="test") as connection, pytest.raises(SchemaPlanted, match=named):
        ensure_control_schema(connection, "main", ["gitlab_main"])
    assert who_ran(superuser) == []
    superuser.execute("INSERT INTO headrace.database (name) VALUES ('main')")
    assert who_ran(superuser) == ["postgres"], "counter-check: every role that writes the table runs it"


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE TRIGGER noting BEFORE INSERT ON headrace.progress FOR EACH ROW EXECUTE FUNCTION public.note_row()",
        "CREATE RULE noting AS ON INSERT TO headrace.progress DO ALSO SELECT public.note()",
        "CREATE TABLE headrace.rehash_runs (run integer DEFAULT length(public.note()))",
    ],
)
def test_objects_added_to_the_schema_later_are_refused_at_the_next_start(
    database: Database, superuser: psycopg.Connection, stranger: str, planted: str
) -> None:
    role = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(stranger)["user"]))
    ensure_control_schema(superuser, "main", ["gitlab_main"])
    superuser.execute(sql.SQL("GRANT CREATE, USAGE ON SCHEMA headrace TO {}").format(role))
    if "CREATE TABLE" in planted:
        plant(stranger, planted)
    else:
        superuser.execute(planted.encode())
    with connect(database.dsn, name="test") as connection, pytest.raises(SchemaPlanted):
        ensure_control_schema(connection, "main", ["gitlab_main"])


def test_objects_of_headraces_role_or_an_administrator_are_accepted(
    database: Database, superuser: psycopg.Connection, stranger: str
) -> None:
    with connect(stranger, name="test") as own:
        for _ in range(2):
            ensure_control_schema(own, "main", ["gitlab_main"])
    with connect(database.dsn, name="test") as other, pytest.raises(SchemaPlanted):
        ensure_control_schema(other, "main", ["gitlab_main"])
