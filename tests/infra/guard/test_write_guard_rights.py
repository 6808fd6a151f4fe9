"""The guard's rights: who may install it, and what an owner of tables has to be granted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import errors, sql

from infra.guard import write_guard
from schemas.errors import PreflightFailed
from tests.infra.guard.guarded import OF_CI, Connection, Guarded, refused

pytestmark = pytest.mark.stack

DOCUMENT = Path(__file__).parents[3] / "docs" / "how-to" / "guarding-a-switchover.md"


@pytest.fixture
def table_owner(guarded: Guarded) -> Iterator[Connection]:
    """A session of the role that owns the tables; the rights that it needs are still to be granted."""
    write_guard.remove(guarded.admin)
    role = sql.Identifier(f"owner of {guarded.admin.info.dbname}")
    guarded.admin.execute(sql.SQL("CREATE ROLE {}").format(role))
    for table in OF_CI:
        name = sql.Identifier(*table.split("."))
        guarded.admin.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(name, role))
    with guarded._database.connect() as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(role))
        yield connection
    guarded.admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def role_of(connection: Connection) -> sql.Identifier:
    row = connection.execute("SELECT current_user").fetchone()
    assert row is not None
    return sql.Identifier(row[0])


def documented_rights(to: Connection) -> list[sql.Composed]:
    """Return what docs/how-to/guarding-a-switchover.md grants for both ways, for the session's role."""
    blocks = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [sql.SQL(block).format(role=role_of(to)) for block in blocks]


def test_the_tables_owner_installs_it_with_the_rights_that_are_documented(
    guarded: Guarded, table_owner: Connection
) -> None:
    with pytest.raises(PreflightFailed, match="permission denied for schema headrace"):
        write_guard.install(table_owner, "gitlab_ci", OF_CI)
    rights, _ = documented_rights(table_owner)
    guarded.admin.execute(rights)
    assert write_guard.install(table_owner, "gitlab_ci", OF_CI) == OF_CI
    guarded.application().execute("UPDATE public.moves SET n = 1")
    guarded.give_away()
    for isolation in ("read committed", "serializable"):
        assert refused(
            guarded.application(), f"SET default_transaction_isolation = '{isolation}'; UPDATE public.moves SET n = 9"
        )
    assert write_guard.remove(table_owner) == OF_CI


def test_where_an_administrator_made_the_function_the_owner_needs_less(
    guarded: Guarded, table_owner: Connection
) -> None:
    guarded.admin.execute(write_guard.function_sql().encode())
    _, rights = documented_rights(table_owner)
    guarded.admin.execute(rights)
    assert write_guard.install(table_owner, "gitlab_ci", OF_CI) == OF_CI
    guarded.application().execute("UPDATE public.moves SET n = 1")


def test_a_function_that_could_not_ask_for_the_owner_is_refused_before_a_table_has_it(
    guarded: Guarded, table_owner: Connection
) -> None:
    """Every write would fail: of the application, which has nothing to do with it."""
    rights, _ = documented_rights(table_owner)
    guarded.admin.execute(rights)
    guarded.admin.execute(sql.SQL("REVOKE INSERT ON headrace.schema_ownership FROM {}").format(role_of(table_owner)))
    with pytest.raises(write_guard.NotGuardable, match="may not read the owners; GRANT USAGE ON SCHEMA headrace"):
        write_guard.install(table_owner, "gitlab_ci", OF_CI)
    assert write_guard.installed(guarded.admin) == {}
    assert guarded.admin.execute("SELECT to_regprocedure('headrace.guard()')").fetchone() == (None,)


def test_role_that_does_not_own_the_table_is_refused_with_its_name(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    guarded.admin.execute("GRANT USAGE, CREATE ON SCHEMA headrace TO application")
    guarded.admin.execute("GRANT SELECT, INSERT ON headrace.schema_ownership, headrace.database TO application")
    with pytest.raises(
        PreflightFailed, match=r"may not change the guard on public\.moves: must be owner of table moves"
    ):
        write_guard.install(guarded.application(), "gitlab_ci", OF_CI)
    assert write_guard.installed(guarded.admin) == {}


def test_other_roles_may_not_execute_the_function(guarded: Guarded) -> None:
    guarded.admin.execute("GRANT USAGE ON SCHEMA headrace TO application; GRANT CREATE ON SCHEMA public TO application")
    application = guarded.application()
    application.execute("CREATE TABLE public.mine ()")
    with pytest.raises(errors.InsufficientPrivilege, match=r"permission denied for function (headrace\.)?guard"):
        application.execute(write_guard.trigger_sql("gitlab_ci", "public.mine")[0])
