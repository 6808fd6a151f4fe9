"""A killed command leaves its action and the record of it, or neither; what is no transaction, as the docs say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from consumers.ledger.progress import Ledger, Place
from infra.kafka import clients
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state.history import OperatorAction, read_history
from producers.session.start_over import start_over
from producers.source import slots
from producers.source.gaps import SilentGap
from tests.conftest import Database
from tests.consumers.commands.schema_commands import registry_settings
from tests.consumers.container_repositories import write_settings
from tests.consumers.registry import TABLE as REGISTRY
from tests.killed_commands import Point, await_end, killed_command
from tests.producers import processes
from tests.producers.sources import Source, copy_all, running, settings_for, topic_of
from tests.shells import Shell

pytestmark = pytest.mark.stack

Connection = psycopg.Connection[Any]

TABLE: Final = "public.t"
ROWS: Final = 20
_WITNESS: Final = """
    CREATE TABLE public.asked AS TABLE headrace.snapshot_requests;
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.asked SELECT NEW.*; RETURN NULL; END $$;
    CREATE TRIGGER note AFTER INSERT ON headrace.snapshot_requests FOR EACH ROW EXECUTE FUNCTION public.note()
"""
"""A request exists only within its transaction."""
_FORM: Final = """
    SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.repositories'::regclass AND NOT attisdropped),
           (SELECT array_agg(conname || ' ' || convalidated ORDER BY conname) FROM pg_constraint
             WHERE conrelid = 'public.repositories'::regclass)
"""
each_point = pytest.mark.parametrize("point", list(Point))


@pytest.fixture
def source(bootstrap_servers: str, prefix: str, database: Database) -> Source:
    """A source whose rows are in their topic; `asked` has the requests for re-snapshots."""
    connection = database.connect()
    connection.execute(f"{processes.SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, {ROWS}) i".encode())
    made = Source(settings_for(bootstrap_servers, prefix, database.dsn, TABLE), connection)
    copy_all(made)
    connection.execute(_WITNESS)
    return made


@pytest.fixture
def config(source: Source, tmp_path: Path) -> Path:
    return processes.write_settings(source.settings, tmp_path / "headrace.toml")


def asked(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM public.asked").fetchone()
    assert row is not None
    return int(row[0])


def recorded(connection: Connection, action: OperatorAction) -> int:
    return sum(entry.action == action for entry in read_history(connection))


@each_point
def test_killed_snapshot(source: Source, config: Path, shell: Shell, point: Point) -> None:
    connection, there = source.connection, int(point is Point.COMMITTED)
    assert killed_command(point, OperatorAction.SNAPSHOT, "snapshot", TABLE, "--config", config)
    await_end(connection)
    assert (asked(connection), recorded(connection, OperatorAction.SNAPSHOT)) == (there, there)
    assert shell.run("snapshot", TABLE, "--json").code == 0
    assert (asked(connection), recorded(connection, OperatorAction.SNAPSHOT)) == (there + 1, there + 1)


@pytest.mark.long
@each_point
def test_killed_repair(source: Source, config: Path, shell: Shell, point: Point) -> None:
    connection, there = source.connection, int(point is Point.COMMITTED)
    words = ("verify", TABLE, "--rows", "--repair")
    with running(source) as producer:
        remove_from_topic(source.settings)
        assert killed_command(point, OperatorAction.REPAIR, *words, "--config", config)
        await_end(connection, of="headrace repair %")
        assert (asked(connection), recorded(connection, OperatorAction.REPAIR)) == (there * ROWS, there)
        producer.caught_up()
        left = 0 if there else ROWS
        assert shell.run(*words, "--json").code == 0
        assert asked(connection) == there * ROWS + left
    repairs = [entry.details["rows"] for entry in read_history(connection) if entry.action == OperatorAction.REPAIR]
    assert sum(repairs) == asked(connection)


def remove_from_topic(settings: Settings) -> None:
    """Put a tombstone after the record of every row, as if each were lost."""
    keys: dict[bytes, int] = {}
    with clients.reading(settings.kafka) as client:
        client.subscribe([topic_of(settings, TABLE)])
        while len(keys) < ROWS:
            for record in client.consume(1_000, timeout=1):
                assert record.error() is None
                keys[bytes(record.key() or b"")] = int(record.partition() or 0)
    writer = clients.producer(settings.kafka)
    for key, partition in keys.items():
        writer.produce(topic_of(settings, TABLE), key=key, value=None, partition=partition)
    assert writer.flush(60) == 0


def test_killed_start_over_has_to_be_repeated_and_is_recorded_then(source: Source, config: Path) -> None:
    for point, there in ((Point.UNRECORDED, 0), (Point.COMMITTED, 1)):
        words = ("produce", "main", "--start-over", "--yes", "--config", config)
        assert killed_command(point, OperatorAction.START_OVER, *words)
        await_end(source.connection)
        assert slots.read(source.connection, source.slot) is None
        assert recorded(source.connection, OperatorAction.START_OVER) == there
        with pytest.raises(SilentGap):
            copy_all(source)
    start_over(source.settings, "main")
    assert recorded(source.connection, OperatorAction.START_OVER) == 2
    copy_all(source)


@each_point
def test_killed_cleanup(
    new_databases: Callable[[str | None], Database], tmp_path: Path, prefix: str, shell: Shell, point: Point
) -> None:
    databases = {name: new_databases(None) for name in ("main", "ci")}
    for name, database in databases.items():
        connection = database.connect()
        ensure_control_schema(connection, "main", ["gitlab_main", "gitlab_ci"], prefix=prefix)
        ledger = Ledger("of_ci", "gitlab_ci", "here:1")
        ledger.open(connection, ledger.begin(connection), {Place("t", 0): "id"})
        connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2 WHERE gitlab_schema <> 'x'")
        connection.execute("UPDATE headrace.database SET name = %s", (name,))
    sections = {name: {"dsn": each.dsn, "gitlab_schemas": ["gitlab_ci"]} for name, each in databases.items()}
    config = write_settings(tmp_path / "headrace.toml", {"prefix": prefix, "databases": sections})
    main = databases["main"].connect()

    def rows() -> list[int]:
        tables = ("headrace.migrations", "headrace.progress")
        found = [main.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() for table in tables]
        return [row[0] for row in found if row is not None]

    assert killed_command(point, OperatorAction.CLEANUP, "cleanup", "main", "--yes", "--config", config)
    await_end(main)
    gone = point is Point.COMMITTED
    assert (rows(), recorded(main, OperatorAction.CLEANUP)) == (([0, 0], 1) if gone else ([1, 1], 0))
    assert shell.run("cleanup", "main", "--yes", "--json").code == 0
    assert (rows(), recorded(main, OperatorAction.CLEANUP)) == ([0, 0], 1)


@pytest.mark.long
def test_killed_schema_release(
    database: Database, bootstrap_servers: str, prefix: str, tmp_path: Path, shell: Shell
) -> None:
    """At every step."""
    config = registry_settings(tmp_path, bootstrap_servers, prefix, database)
    connection = database.connect()
    connection.execute(REGISTRY.encode())
    words = ("schema", "expand", "status_backfills")

    def form() -> Any:
        return connection.execute(_FORM).fetchone()

    ensure_control_schema(connection, "main", ["registry", "gitlab_main"], prefix=prefix)
    steps = 0
    while killed_command(Point.UNRECORDED, OperatorAction.SCHEMA, *words, "--config", config):
        await_end(connection)
        before = form()
        assert recorded(connection, OperatorAction.SCHEMA) == steps
        assert killed_command(Point.RECORDED, OperatorAction.SCHEMA, *words, "--config", config)
        await_end(connection)
        assert (form(), recorded(connection, OperatorAction.SCHEMA)) == (before, steps)
        assert killed_command(Point.COMMITTED, OperatorAction.SCHEMA, *words, "--config", config)
        await_end(connection)
        steps += 1
        assert form() != before
        assert recorded(connection, OperatorAction.SCHEMA) == steps
    assert steps > 1
    assert "already up to date" in shell.run(*words).out
