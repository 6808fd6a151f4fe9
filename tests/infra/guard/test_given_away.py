"""Reports of status and check about tables that another database owns: stray writes, guarded, or unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from consumers.operations.status import gather
from consumers.testing.waiting import until
from infra.guard import write_guard
from infra.guard.given_away import advise, lines, survey
from infra.postgres.control import ensure_control_schema
from infra.state.positions import read_sources
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings
from tests.producers.processes import ROOT
from tests.producers.session.test_handover import GIVE
from tests.producers.sources import Source, copy_all, running, settings_for

pytestmark = pytest.mark.stack

TABLES = (
    "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);"
    "CREATE TABLE not_captured (id int PRIMARY KEY)"
)
LABELS = {"public.t": "gitlab_main", "public.u": "gitlab_ci", "public.not_captured": "gitlab_main"}
SECTION: dict[str, Any] = {"gitlab_schemas": ["gitlab_main", "gitlab_ci"], "table_schemas": LABELS}


@pytest.fixture
def source(bootstrap_servers: str, prefix: str, database: Database) -> Source:
    connection = database.connect()
    connection.execute(TABLES.encode())
    settings = settings_for(bootstrap_servers, prefix, database.dsn, "public.t", "public.u", **SECTION)
    return Source(settings, connection)


def tables(source: Source) -> dict[str, dict[str, Any]]:
    """Return what is found, by table, of the one gitlab schema that was given away."""
    (given,) = survey(source.settings, read_sources(source.settings))
    assert (given.database, given.gitlab_schema, given.owner) == ("main", "gitlab_main", "other")
    return {each["table"]: each for each in given.document()["tables"]}


def said(source: Source) -> list[str]:
    return [line for given in gather(source.settings)["given_away"] for line in lines(given)]


def test_stray_writes_and_unwatched_tables_are_reported(source: Source) -> None:
    unknown = (
        "main: writes here to {}, owned by other, go unnoticed: no guard refuses them and no producer counts them;"
        " see `headrace check`"
    )
    with running(source) as producer:
        producer.caught_up()
        assert survey(source.settings, read_sources(source.settings)) == []
        source.connection.execute(GIVE)
        source.passes(producer.check)
        source.recorded()
        assert (tables(source)["public.t"]["watched"], tables(source)["public.t"]["writes"]) == (True, 0)
        assert tables(source)["public.not_captured"]["writes"] is None
        assert said(source) == [unknown.format("public.not_captured")]
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    assert tables(source)["public.t"]["writes"] is None, "nobody reads on"
    assert said(source) == [unknown.format("public.not_captured, public.t")]

    source.connection.execute("INSERT INTO t VALUES (1), (2); DELETE FROM t WHERE id = 1; INSERT INTO u VALUES (1)")
    with running(source) as producer:
        source.passes(producer.check)
        source.recorded()
        written = tables(source)["public.t"]
        assert (written["watched"], written["writes"], written["inserts"], written["deletes"]) == (True, 3, 2, 1)
        line, _ = said(source)
        assert line == (
            f"main: table public.t, owned by other, was written here 3 times since {written['since']} (inserts 2,"
            f" updates 0, deletes 1, truncates 0), last at {written['last']}; see `headrace check`"
        )
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    assert (tables(source)["public.t"]["watched"], tables(source)["public.t"]["writes"]) == (False, 3)


def test_guarded_tables_have_no_unknown_writes(source: Source) -> None:
    copy_all(source)
    write_guard.install(source.connection, "gitlab_main", ["public.t", "public.not_captured"])
    source.connection.execute(GIVE)
    assert [each["guarded"] for each in tables(source).values()] == [True, True]
    assert said(source) == []


def test_check_lists_tables_without_the_guard_of_their_schema(source: Source) -> None:
    ensure_control_schema(source.connection, "main", ["gitlab_main", "gitlab_ci"])
    assert list(advise(source.settings, {})) == []
    write_guard.install(source.connection, "gitlab_main", ["public.t"])
    (advice,) = advise(source.settings, {})
    assert (advice.where, advice.problem, advice.remedy) == (
        "databases.main",
        "public.not_captured lacks a working guard, and other tables of gitlab_main have one",
        "install it with `headrace guard gitlab_main --database main`",
    )
    assert not advice.blocks
    source.connection.execute("ALTER FUNCTION headrace.guard() STABLE")  # as of another version
    (advice,) = advise(source.settings, {})
    assert advice.problem.startswith("public.not_captured, public.t lack a working guard")


def test_check_says_why_a_guard_refuses_the_owners_writes(source: Source) -> None:
    ensure_control_schema(source.connection, "main", ["gitlab_main", "gitlab_ci"])
    write_guard.install(source.connection, "gitlab_main", ["public.t", "public.not_captured"])
    role = sql.Identifier(f"owner in {source.connection.info.dbname}")
    source.connection.execute(sql.SQL("CREATE ROLE {0}; GRANT USAGE, CREATE ON SCHEMA headrace TO {0}").format(role))
    source.connection.execute(sql.SQL("ALTER FUNCTION headrace.guard() OWNER TO {}").format(role))
    (advice,) = advise(source.settings, {})
    assert advice.blocks
    assert "may not read the owners: no guarded table can be written" in advice.problem
    source.connection.execute(advice.remedy.encode())
    assert list(advise(source.settings, {})) == []
    source.connection.execute("INSERT INTO t VALUES (1)")
    source.connection.execute(
        sql.SQL("REASSIGN OWNED BY {0} TO postgres; DROP OWNED BY {0}; DROP ROLE {0}").format(role)
    )


def test_database_with_another_name_or_without_answer_is_left_out(
    source: Source, new_databases: Callable[[str | None], Database]
) -> None:
    """Of a copy that is promoted and not open yet nothing is said, and what one hides does not hide the others."""
    ensure_control_schema(source.connection, "main", ["gitlab_main", "gitlab_ci"])
    source.connection.execute(GIVE)
    role = sql.Identifier(f"no rights in {source.connection.info.dbname}")
    source.connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    try:
        section = source.settings.database("main")
        copy = new_databases(None)
        copy.connect().execute(TABLES.encode())
        ensure_control_schema(copy.connect(), "main", ["gitlab_main", "gitlab_ci"])
        copy.connect().execute(GIVE)
        user = make_conninfo(section.dsn.get_secret_value(), user=role.as_string()[1:-1], password="x")
        others = {
            "copy": copy.dsn,
            "silent": "postgresql://nobody@127.0.0.1:1/none",
            "hidden": user,
        }
        databases = {name: section.model_validate({**section.model_dump(), "dsn": dsn}) for name, dsn in others.items()}
        settings = source.settings.model_copy(update={"databases": {**databases, "main": section}})
        assert [each.database for each in survey(settings, {})] == ["main"]
    finally:
        source.connection.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.mark.long
def test_status_and_check_show_it(source: Source, tmp_path: Path) -> None:
    copy_all(source)
    source.connection.execute(GIVE)
    section = source.settings.database("main")
    config = write_settings(
        tmp_path / "headrace.toml",
        {
            "prefix": source.settings.prefix,
            "kafka": {"bootstrap_servers": source.settings.kafka.bootstrap_servers},
            "databases": {
                "main": {"dsn": section.dsn.get_secret_value(), "tables": ["public.t", "public.u"], **SECTION},
            },
        },
    )

    def command(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "headrace", *arguments, "--config", str(config)],
            cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
        ).stdout  # fmt: skip

    words = "writes here to public.not_captured, public.t, owned by other, go unnoticed"
    assert words in command("status")
    (given,) = json.loads(command("status", "--json"))["given_away"]
    assert [each["writes"] for each in given["tables"]] == [None, None]
    assert f"databases.main: {words}" in command("check")
    found = (one for one in json.loads(command("check", "--json"))["advice"] if "go unnoticed" in one["problem"])
    (advice,) = found
    assert advice["where"] == "databases.main"
    assert advice["remedy"] == "install the guard with `headrace guard gitlab_main --database main`"
