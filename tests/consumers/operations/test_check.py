"""`headrace check`, `status` and `consume` report migrations that cannot run: commands on real servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings
from tests.consumers.contract.authors import BROKEN, sound
from tests.documents import hold
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server

pytestmark = pytest.mark.stack

CHECKOUT = Path(__file__).parents[3]
USERS = "CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL)"
Ended = subprocess.CompletedProcess[str]


class Author:
    """A migration author's checkout with migrations, and a database with a table of users."""

    def __init__(self, directory: Path, database: Database, kafka: str, prefix: str) -> None:
        self.directory = directory / "checkout"
        for package in ("schemas", "infra", "producers", "consumers"):
            shutil.copytree(CHECKOUT / package, self.directory / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(CHECKOUT / "headrace.py", self.directory)
        self.connection = database.connect()
        self.connection.execute(USERS)
        self._document: dict[str, Any] = {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": kafka},
            "databases": {
                "main": {
                    "dsn": database.dsn,
                    "gitlab_schemas": ["gitlab_main"],
                    "tables": ["public.users"],
                    "allow_unlimited_wal": True,
                }
            },
        }
        self.settings()

    def settings(self, **sections: Any) -> None:
        self.config = write_settings(self.directory / "headrace.toml", {**self._document, **sections})

    def section(self, **changed: Any) -> dict[str, Any]:
        """Return `databases` with other values for its only database."""
        return {"main": {**self._document["databases"]["main"], **changed}}

    def write(self, stem: str, text: str) -> None:
        (self.directory / "consumers" / "migrations" / f"{stem}.py").write_text(text, encoding="utf-8")

    def run(self, *words: str, **environment: str) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-m", "headrace", *words, "--config", str(self.config)],
            cwd=self.directory,  # which Python searches before installed packages
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        hold(words, ended.stdout)
        return ended

    def findings(self, **environment: str) -> list[str]:
        """Return the lines of the findings; the exit code is checked against them."""
        ended = self.run("check", "--json", **environment)
        found = [f"{one['where']}: {one['problem']}; {one['remedy']}" for one in json.loads(ended.stdout)["findings"]]
        assert ended.returncode == (3 if found else 0), ended
        return found


@pytest.fixture
def author(tmp_path: Path, database: Database, bootstrap_servers: str, prefix: str) -> Author:
    return Author(tmp_path, database, bootstrap_servers, prefix)


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with registry_server() as server:
        yield server


@pytest.mark.long
def test_broken_files_are_listed_with_line_and_do_not_affect_others(author: Author) -> None:
    for name, (text, _) in BROKEN.items():
        author.write(name.lower(), text)
    author.write("first", sound("same"))
    author.write("second", sound("same"))
    author.write("mistyped", sound("mistyped", gitlab_schema='gitlab_schema = "gitlab_mian"'))
    author.write("lower_emails", sound("lower_emails"))
    expected = {**{name: said for name, (_, said) in BROKEN.items()}, "same": "rename one of them"}
    expected["mistyped"] = "mistyped.py:7: class Lowers: unknown gitlab schema gitlab_mian, did you mean"

    findings = author.findings()
    assert len(findings) == len(expected)
    for name, said in expected.items():
        assert any(one.startswith(f"migrations.{name}: ") and said in one for one in findings), (name, findings)

    status = author.run("status", "--json")
    assert status.returncode == 0, status.stderr
    shown = {one["name"]: one for one in json.loads(status.stdout)["migrations"]}
    assert shown["lower_emails"]["state"] == "waiting"
    assert shown.keys() >= {*expected, "skip_resets"}
    assert all(shown[name]["state"] == "failed" and said in shown[name]["error"] for name, said in expected.items())
    assert "no_comma.py:7" in author.run("status").stdout

    for name in ("syntax_error", "no_comma", "same"):
        ended = author.run("consume", name)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
        assert expected[name] in ended.stderr
    assert author.run("verify", "lower_emails").returncode == 0
    for command in (("--help",), ("init", "--sql"), ("dead-letters", "list", "lower_emails")):
        ended = author.run(*command) if command != ("--help",) else author.run("check", "--help")
        assert ended.returncode == 0, ended.stderr


@pytest.mark.long
def test_table_that_is_not_captured_blocks_configured_migration(author: Author) -> None:
    author.connection.execute("CREATE TABLE profiles (id bigint PRIMARY KEY, email text)")
    author.write("profiles", sound("profiles", tables='tables = ("public.profiles",)'))
    assert author.findings() == [], "it is not meant to run"
    said = "migrations.profiles: it reads table public.profiles, which is not captured"
    assert said in author.run("check").stdout, "but it is reported"
    named = author.run("check", "profiles")
    assert named.returncode == 3, "a migration that is named is meant to run"
    assert said in named.stdout
    assert "ready" not in named.stdout
    author.settings(migrations={"profiles": {"batch_size": 10}})
    (one,) = author.findings()
    assert one.startswith(f'{said}; add "public.profiles" to databases.main.tables')
    author.settings(migrations={"profiles": {"enabled": False}})
    assert author.findings() == []


def test_table_of_another_gitlab_schema_than_the_migrations_is_reported(author: Author) -> None:
    author.connection.execute("CREATE TABLE profiles (id bigint PRIMARY KEY, email text)")
    author.write("profiles", sound("profiles", tables='tables = ("public.profiles",)'))
    docs = author.directory / "docs"
    docs.mkdir()
    (docs / "profiles.yml").write_text("table_name: profiles\ngitlab_schema: gitlab_main_user\n")
    section = author.section(
        gitlab_schemas=["gitlab_main", "gitlab_main_user"], tables=["public.profiles"], gitlab_dictionary="docs"
    )
    author.settings(databases=section, migrations={"profiles": {"batch_size": 10}})
    (one,) = author.findings()
    assert one == (
        "migrations.profiles: it reads table public.profiles as one of gitlab_main, but the table belongs to"
        " gitlab_main_user; correct its gitlab_schema, or add"
        ' "public.profiles" = "gitlab_main" under [databases.main.table_schemas],'
        " or disable the migration with migrations.profiles.enabled = false"
    )
    section["main"]["table_schemas"] = {"public.profiles": "gitlab_main"}
    author.settings(databases=section, migrations={"profiles": {"batch_size": 10}})
    assert author.findings() == []


def test_missing_table_or_column_is_reported_with_suggestion(author: Author) -> None:
    author.write("table", sound("table", tables='tables = ("public.user",)'))
    author.write("lacks", sound("lacks", columns='columns = ("id", "emial")'))
    author.settings(migrations={"lacks": {"batch_size": 10}})
    lacks, table = author.findings()
    assert "it reads table public.user, which database main does not have, did you mean public.users?" in table
    assert "it reads column emial, which table public.users does not have, did you mean email?" in lacks


def test_recorded_run_makes_problems_blocking(author: Author) -> None:
    author.connection.execute("CREATE TABLE profiles (id bigint PRIMARY KEY, email text)")
    author.write("profiles", sound("profiles", tables='tables = ("public.profiles",)'))
    author.connection.execute(
        (author.directory / "infra" / "postgres" / "control.sql").read_bytes()
        + b"; INSERT INTO headrace.migrations (name, gitlab_schema) VALUES ('profiles', 'gitlab_main');"
        b" INSERT INTO headrace.database (name) VALUES ('main')"
    )
    (one,) = author.findings()
    assert "public.profiles, which is not captured" in one


@pytest.mark.long
def test_misspelt_section_or_variable_is_reported_with_suggestion(author: Author) -> None:
    author.write("lower_emails", sound("lower_emails"))
    author.settings(migrations={"lower_email": {"batch_size": 10}})
    (section,) = author.findings()
    assert section.startswith("migrations.lower_email: unknown migration lower_email, did you mean lower_emails?")
    author.settings()
    (switch,) = author.findings(HEADRACE_LOWER_EMIALS_ENABLED="false")
    assert "HEADRACE_LOWER_EMIALS_ENABLED is set for the unknown migration lower_emials, did you mean" in switch
    (wrong,) = author.findings(HEADRACE_LOWER_EMAILS_ENABLED="perhaps")
    assert "HEADRACE_LOWER_EMAILS_ENABLED is 'perhaps'" in wrong
    author.settings(migrations={"lower_emails": {"bach_size": 10}})
    (key,) = author.findings()
    assert "unknown key migrations.lower_emails.bach_size" in key


@pytest.mark.long
def test_unusable_schema_registry_is_a_finding(author: Author, registry: RegistryServer, closed_port: int) -> None:
    author.settings(registry={"url": registry.url})
    assert author.findings() == []
    author.settings(registry={"url": f"{registry.url}/nothing-here"})
    assert author.findings()[0].startswith("registry: ")
    author.settings(registry={"url": f"http://127.0.0.1:{closed_port}"})
    assert "does not answer" in author.findings()[0]
    registry.credentials = "user:password"
    author.settings(registry={"url": registry.url})
    assert "Unauthorized" in author.findings()[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        author.settings(registry={"url": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        assert "does not answer" in author.findings()[0]


@pytest.mark.long
def test_slow_count_without_suggested_index_is_shown_with_its_plan(author: Author) -> None:
    slow = sound("lower_emails").replace("public.users WHERE email <>", "public.users, pg_sleep(3) WHERE email <>")
    author.write("lower_emails", slow)
    found = json.loads(author.run("check", "--json").stdout)["advice"]
    (advice,) = [one for one in found if one["where"] == "migrations.lower_emails"]
    assert "takes more than 1000 ms to count the rows that are left" in advice["problem"]
    assert any("Scan on users" in line for line in advice["shown"])
    assert author.findings() == []


@pytest.mark.long
def test_status_shows_estimate_when_count_is_slow(author: Author) -> None:
    slow = sound("lower_emails").replace("public.users WHERE email <>", "public.users, pg_sleep(30) WHERE email <>")
    author.write("lower_emails", slow)
    author.connection.execute("INSERT INTO users SELECT i, 'A' || i FROM generate_series(1, 5000) i; ANALYZE users")
    status = json.loads(author.run("status", "--json").stdout)
    (found,) = [one for one in status["migrations"] if one["name"] == "lower_emails"]
    assert found["remaining_estimated"]
    assert 2_500 <= found["remaining"] <= 5_000
    assert f"~{found['remaining']:,}" in author.run("status").stdout


def test_status_shows_other_migrations_when_one_cannot_be_counted(author: Author) -> None:
    author.write("lower_emails", sound("lower_emails"))
    author.write("none", sound("none").replace("return cursor.fetchone()[0]", "return None"))
    author.write("raises", sound("raises").replace("return cursor.fetchone()[0]", "return {}['x']"))
    status = author.run("status", "--json")
    assert status.returncode == 0, status.stderr
    shown = {one["name"]: one for one in json.loads(status.stdout)["migrations"]}
    assert shown["lower_emails"]["remaining"] == 0
    assert "remaining() returned None, not a number of rows" in shown["none"]["error"]
    assert "remaining() raised KeyError" in shown["raises"]["error"]
    author.settings(migrations={"none": {"batch_size": 10}})
    (one,) = author.findings()
    assert "migrations.none: none: remaining() returned None" in one


@pytest.mark.long
def test_verify_ignores_the_roles_statement_timeout(author: Author) -> None:
    slow = sound("lower_emails").replace("public.users WHERE email <>", "public.users, pg_sleep(7) WHERE email <>")
    author.write("lower_emails", slow)
    author.connection.execute("INSERT INTO users SELECT i, 'A' || i FROM generate_series(1, 5) i")
    name = psycopg.sql.Identifier(author.connection.info.dbname)
    author.connection.execute(psycopg.sql.SQL("ALTER DATABASE {} SET statement_timeout = '1s'").format(name))
    ended = author.run("verify", "lower_emails", "--json")
    assert json.loads(ended.stdout)["remaining"] == 5
    assert ended.returncode == 1
    assert "still counting remaining rows" in ended.stderr


def test_verify_can_be_stopped_while_it_counts(author: Author) -> None:
    slow = sound("lower_emails").replace("public.users WHERE email <>", "public.users, pg_sleep(600) WHERE email <>")
    author.write("lower_emails", slow)
    counting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "verify", "lower_emails", "--config", str(author.config)],
        cwd=author.directory,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: author.connection.execute(counting).fetchone() == (1,), "the count runs")
        process.terminate()
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "lower_emails: the count was stopped; nothing was changed" in said
    until(lambda: author.connection.execute(counting).fetchone() == (0,), "the server stops counting")
