"""If a policy hides rows from the role, nothing is changed, counted or complete; the error names the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from consumers.commands import consume
from consumers.commands.execution import running
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.remaining import remaining
from consumers.operations.status import gather
from infra.postgres.connect import RowsHidden
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from tests.conftest import Database
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack

POLICY = "CREATE POLICY tenant ON public.container_repositories TO {role} USING (id <= 100)"


@pytest.fixture
def limited(settings: Settings, database: Database, connection: psycopg.Connection[Any]) -> Iterator[Settings]:
    """Settings with a role that has a consumer's privileges and sees 100 of 300 rows."""
    role = f"{database.name}_consumer"
    fill(connection, dict.fromkeys(range(1, 301), TOO_MANY_TAGS))
    ensure_control_schema(connection, "main", ["gitlab_main"])
    connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT pg_monitor TO {role};"
        f" GRANT USAGE ON SCHEMA headrace, public TO {role};"
        f" GRANT ALL ON ALL TABLES IN SCHEMA headrace, public TO {role};"
        f" GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};"
        " ALTER TABLE public.container_repositories ENABLE ROW LEVEL SECURITY;" + POLICY.format(role=role)
    )
    section = settings.database("main").model_copy(
        update={"dsn": SecretStr(make_conninfo(database.dsn, user=role, password="x"))}
    )
    yield settings.model_copy(update={"databases": {"main": section}})
    connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_consumer_with_hidden_rows_stops_before_writing_and_is_not_complete(
    limited: Settings, feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any]
) -> None:
    feed.snapshot(dict.fromkeys(range(1, 301), TOO_MANY_TAGS))

    with pytest.raises(RowsHidden, match=r'policy for table "container_repositories".* BYPASSRLS') as refused:
        catch_up(limited)

    assert refused.value.exit_code == 3
    assert written(connection) == []
    found = connection.execute("SELECT bool_or(completed_at IS NOT NULL) FROM headrace.migrations")
    assert found.fetchone() == (False,)
    # With BYPASSRLS it continues.
    connection.execute(f"ALTER ROLE {psycopg.conninfo.conninfo_to_dict(dsn_of(limited))['user']} BYPASSRLS")
    assert catch_up(limited).applied == 300


def test_remaining_rows_are_not_counted_from_visible_rows_only(limited: Settings) -> None:
    with pytest.raises(RowsHidden, match='policy for table "container_repositories"'):
        remaining(limited, SkipResets.configure(limited.migration("skip_resets")), "main")
    (found,) = [one for one in gather(limited)["migrations"] if one["name"] == "skip_resets"]
    assert found["remaining"] is None
    assert "row security hides rows" in found["error"]


def test_consume_names_table_with_hidden_rows_at_start(limited: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "load_settings", lambda _config: limited)
    with pytest.raises(RowsHidden, match=r"rows of table public\.container_repositories from this role"):
        consume.consume("skip_resets", until_caught_up=True)


def dsn_of(settings: Settings) -> str:
    return settings.database("main").dsn.get_secret_value()
