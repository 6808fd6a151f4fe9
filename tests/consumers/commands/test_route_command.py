"""`headrace route` with the cursors of a real database, once or as a service."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
import tomli_w

from consumers.gitserver.tables import OWN_TABLES
from consumers.routing.placement import md5_home, partition_of, rendezvous_home
from consumers.testing.waiting import PATIENCE, until
from infra.postgres.control import ensure_control_schema
from tests.conftest import Database

pytestmark = pytest.mark.stack

NODES = ["gitserver-0:3178", "gitserver-1:3178", "gitserver-2:3178"]
NAME = "github.com/owner/Repo"
OLD, NEW = md5_home(NAME, NODES), rendezvous_home(NAME, NODES)


@pytest.fixture
def connection(database: Database) -> psycopg.Connection:
    opened = database.connect()
    opened.execute("CREATE SCHEMA headrace")
    opened.execute(OWN_TABLES.encode())
    return opened


def pass_it(connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO headrace.rehash_cursors VALUES (%s, NULL, true)", (partition_of(NAME),))


def settings(directory: Path, *databases: tuple[str, str], schema: str = "gitserver") -> str:
    file = directory / "headrace.toml"
    listed = {name: {"dsn": dsn, "gitlab_schemas": [schema]} for name, dsn in databases}
    values = {"databases": listed, "gitserver": {"nodes": NODES, "refresh_seconds": 0.05}}
    file.write_text(tomli_w.dumps(values))
    return str(file)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "headrace", "route", *options]


def route(options: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(command(*options), check=False, capture_output=True, text=True)
    return done.returncode, done.stdout or done.stderr


def test_passed_name_has_its_new_home_first(connection: psycopg.Connection, database: Database, tmp_path: Path) -> None:
    config = settings(tmp_path, ("code", database.dsn))
    assert route([NAME, "--config", config]) == (0, f"{NAME}\t{OLD}\t{NEW}\n")
    pass_it(connection)
    code, said = route([NAME, "--json", "--config", config])
    assert (code, json.loads(said)) == (0, {"name": NAME, "homes": [NEW, OLD]})


def test_route_service_follows_the_cursors_until_stopped(
    connection: psycopg.Connection, database: Database, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        options = ["--serve", "--port", "0", "--config", settings(tmp_path, ("code", database.dsn))]
        child = subprocess.Popen(command(*options), stderr=file)
    try:
        until(lambda: child.poll() is not None or '"port"' in log.read_text(), "it answers")
        found = re.search(r'"port": (\d+)', log.read_text())
        assert found, log.read_text()
        url = f"http://127.0.0.1:{found[1]}/homes?name={NAME}"

        def home() -> str:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return str(json.load(answer)["home"])

        assert home() == OLD
        pass_it(connection)
        until(lambda: home() == NEW, "the cursor passed")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    finally:
        child.kill()


def test_route_reads_cursors_from_the_owner_of_the_gitlab_schema(
    connection: psycopg.Connection, database: Database, tmp_path: Path
) -> None:
    pass_it(connection)
    ensure_control_schema(connection, "code", ["gitserver"])
    config = settings(tmp_path, ("another", "postgresql://nobody@127.0.0.1:1/none"), ("code", database.dsn))
    assert route([NAME, "--config", config]) == (0, f"{NAME}\t{NEW}\t{OLD}\n")


def test_route_reports_wrong_settings_at_the_start(database: Database, tmp_path: Path) -> None:
    away = settings(tmp_path, ("code", "postgresql://nobody@127.0.0.1:1/none"))
    assert route([NAME, "--config", away])[0] == 1
    code, said = route([NAME, "--config", settings(tmp_path, ("code", database.dsn), schema="gitlab_main")])
    assert code == 2
    assert "no database in the settings lists the gitlab schema gitserver" in said
    for options in ([], [NAME, "--serve"]):
        code, said = route(options)
        assert code == 2
        assert "give either names of repositories or --serve" in said
