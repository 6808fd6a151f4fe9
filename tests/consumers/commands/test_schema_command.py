"""Runs the three releases by their commands, with a real producer and applications that keep writing."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from consumers.commands import schema_command
from consumers.migrations.status_backfills import StatusBackfills
from consumers.operations import catalog
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import UsageError
from tests.benchmarks.applications import reading
from tests.conftest import Database
from tests.consumers.commands.schema_commands import (
    Run,
    answer,
    caught_up,
    complete,
    done,
    refused,
    registry_settings,
    runner,
)
from tests.consumers.known_migrations import known_are
from tests.consumers.registry import LOG, TABLE, insert, insert_with_status, statuses, writes
from tests.producers import sources

pytestmark = pytest.mark.stack


@pytest.fixture
def config(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Path:
    return registry_settings(tmp_path, bootstrap_servers, prefix, database)


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    """A connection to a registry before the releases, with a log of the writes to it."""
    opened = database.connect()
    opened.execute(TABLE + LOG)
    return opened


@pytest.fixture
def run(config: Path, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    # The runner closes its standard error after each command, and the log of this process would keep using it.
    monkeypatch.setattr(log, "configure", lambda _settings: None)
    return runner(config)


def test_releases_run_forward_and_down_with_live_producer_and_applications(
    run: Run, settings: Settings, connection: psycopg.Connection[Any]
) -> None:
    source = sources.Source(settings, connection)
    insert(connection, [(key % 3, key) for key in range(50)])
    with sources.running(source) as producer:
        producer.caught_up()
        run("expand")
        insert(connection, [(1, 101), (1, 102)])
        insert_with_status(connection, {(1, 201): "native", (1, 202): "import_complete"})
        assert answer(run("backfill", "--json"))["applied"] == 52 == writes(connection)
        assert "every row of public.repositories has a migration_status; 0 were" in run("backfill").stdout

        insert(connection, [(1, 103)])
        assert "1 rows of public.repositories have no" in refused(run("contract"))
        producer.caught_up()
        assert caught_up(settings).applied == 1
        assert not complete(connection), "such a row could come again"
        assert len(done(run("contract", "--json"))) == 2
        assert complete(connection)
        producer.caught_up()
        assert caught_up(settings).applied == 0

        run("contract", "--down")
        assert not complete(connection)
        assert "run `headrace schema backfill status_backfills --down` first" in refused(
            run("expand", "--down", "--yes")
        )
        assert "is run 2 and reads all events again" in run("backfill", "--down").stdout
        assert "nothing to undo" in run("backfill", "--down").stdout
        connection.execute("DELETE FROM repositories WHERE migration_status = 'import_complete'")
        run("expand", "--down", "--yes")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            statuses(connection)

        # The topic's events still have the values of the dropped column: expand requests a re-snapshot.
        run("expand")
        producer.caught_up()
        run("backfill")
        assert set(statuses(connection).values()) == {"native"}


class Writer(threading.Thread):
    """An application without support for the column that inserts a row every few milliseconds."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._stop_asked = threading.Event()
        self.rows = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stop_asked.wait(0.005):
                insert(self._connection, [(7, 1_000 + self.rows)])
                self.rows += 1
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()
        assert self.error is None, self.error


@pytest.mark.long
def test_expand_blocks_no_session_for_long_while_a_report_holds_the_table(
    run: Run,
    config: Path,
    settings: Settings,
    database: Database,
    connection: psycopg.Connection[Any],
) -> None:
    source = sources.Source(settings, connection)
    insert(connection, [(1, key) for key in range(100)])
    words = [sys.executable, "-m", "headrace", "schema", "expand", "status_backfills", "--config", str(config)]
    stopping = threading.Event()
    with sources.running(source) as producer, ThreadPoolExecutor(1) as pool:
        producer.caught_up()
        writer = Writer(database.connect())
        writer.start()
        try:
            with ExitStack() as report:
                report.enter_context(reading(database.dsn, "repositories"))
                with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as expanding:
                    assert expanding.stderr is not None
                    said = next((line for line in expanding.stderr if b"table in use" in line), b"")
                    before = writer.rows
                    until(lambda: writer.rows > before + 20, "the writer continues after the waiting expand")
                    report.close()
                    expanding.stderr.read()
                assert (b"report" in said, expanding.returncode) == (True, 0)
            member = StatusBackfills.configure(settings.migration("status_backfills"))
            working = pool.submit(consumer_of(settings, member, "main", stopping=stopping).run)
            until(lambda: writes(connection) > 100, "old rows and new ones are backfilled")
            assert "status_backfills has running consumers" in refused(run("expand", "--down", "--yes"))
            writer.stop()
            assert answer(run("backfill", "--json"))["table"] == "public.repositories"
            assert None not in statuses(connection).values()
        finally:
            stopping.set()
            writer.stop()
        working.result(PATIENCE)
    assert set(statuses(connection).values()) == {"native"}
    assert writes(connection) == 100 + writer.rows


PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "schema-migrations.md"


def test_backfill_of_the_documentation_works(
    settings: Settings, config: Path, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("visibility_backfills")
    exec(source, vars(module))
    kinds = {**catalog.migrations(settings), "visibility_backfills": module.VisibilityBackfills}
    known_are(monkeypatch, kinds)
    monkeypatch.setattr(log, "configure", lambda _settings: None)
    captured = settings.database("main").model_copy(update={"tables": ("public.projects",)})
    chosen = settings.model_copy(update={"databases": {"main": captured}})
    connection.execute("CREATE TABLE projects (id bigint PRIMARY KEY, name text)")
    connection.execute("INSERT INTO projects SELECT i, 'project ' || i FROM generate_series(1, 25) i")

    def schema(release: str) -> None:
        result = CliRunner().invoke(schema_command.app, [release, "visibility_backfills", "--config", str(config)])
        assert result.exception is None, result.exception

    with sources.running(sources.Source(chosen, connection)) as producer:
        producer.caught_up()
        schema("expand")
        schema("backfill")
        schema("contract")
    found = connection.execute("SELECT visibility, count(*) FROM projects GROUP BY visibility").fetchall()
    assert found == [("private", 25)]
    for forbidden in ("x" * 21, None):
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute("INSERT INTO projects VALUES (26, 'project 26', %s)", (forbidden,))


def test_migration_that_is_no_backfill_is_refused(config: Path) -> None:
    result = CliRunner().invoke(schema_command.app, ["expand", "skip_resets", "--config", str(config)])
    assert isinstance(result.exception, UsageError)
    assert "skip_resets is not a backfill; backfills: status_backfills" in str(result.exception)
