"""`headrace check` of a source that cannot resume: each case forced on a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from consumers.operations.status import gather
from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import DatabaseSettings
from infra.settings.storage_settings import VirtualStorageSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.session import slot_monitor
from producers.session.check import hindrances, of_tables, outlook, slot_now
from producers.session.slot_monitor import Forecast
from producers.source import slots
from producers.source.transactions import blocking
from schemas.positions import Lsn
from tests.conftest import Database
from tests.producers.processes import ROOT, write_settings
from tests.producers.servers import own_server
from tests.producers.session.checks import (
    AGAIN,
    TABLE,
    at,
    copied,
    findings,
    forecast_of,
    restart_from_scratch,
    set_to,
    the_finding,
)
from tests.producers.sources import Source, copy_all, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


def test_tables_whose_updates_lack_the_old_row_are_named_with_what_each_program_needs(new_source: NewSource) -> None:
    tables = [f"t{number}" for number in range(7)]
    created = ";".join(f"CREATE TABLE {name} (id int PRIMARY KEY)" for name in tables)
    source = new_source(created, *(f"public.{name}" for name in tables))
    (advice,) = of_tables(source.connection, source.settings, "main")
    assert (advice.where, advice.blocks) == ("databases.main", False)
    assert "updates of 7 captured tables lack the old row" in advice.problem
    assert advice.shown == (*(f"public.{name}" for name in tables[:5]), "and 2 more")
    assert "add the tables to upsert_tables under [databases.main]" in advice.remedy
    for name in tables[1:]:
        source.connection.execute(f"ALTER TABLE {name} REPLICA IDENTITY FULL".encode())
    (advice,) = of_tables(source.connection, source.settings, "main")
    assert ("1 captured table lacks" in advice.problem, advice.shown) == (True, ("public.t0",))
    source.connection.execute("ALTER TABLE t0 REPLICA IDENTITY FULL")
    assert list(of_tables(source.connection, source.settings, "main")) == []


def test_healthy_source_has_no_findings_before_during_and_after_a_run(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    assert findings(source) == []
    assert outlook(source.connection, source.settings, "main", None) is None
    with running(source) as producer:
        producer.caught_up()
        assert findings(source) == []
        assert forecast_of(source).active
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    assert findings(source) == []
    forecast = forecast_of(source)
    assert (forecast.slot, forecast.status, forecast.active) == (source.slot, "reserved", False)
    assert forecast.rate is not None, "measured, since no producer recorded it"
    (seen,) = gather(source.settings)["sources"]
    assert (seen["slot_status"], seen["lag_bytes"] >= 0, seen["retained_bytes"] > 0) == ("reserved", True, True)


@pytest.mark.parametrize(("seconds_ago", "waits"), [(10.0, 0.0), (0.25, 0.75), (-3_600.0, 1.0)])
def test_wal_growth_is_measured_while_the_source_is_examined(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch, seconds_ago: float, waits: float
) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    now = slot_now(source.connection, source.settings, "main")
    assert now is not None
    monkeypatch.setattr("producers.session.check.slot_now", lambda *_: now)
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    before = replace(now, at=now.at - seconds_ago, written=Lsn(now.written - 5_000))
    forecast = outlook(source.connection, source.settings, "main", None, before)
    assert waited == [pytest.approx(waits)]
    assert forecast is not None
    rate = None if forecast.rate is None else (forecast.rate.bytes_per_second, forecast.rate.seconds)
    assert rate == (pytest.approx((500.0, 10.0)) if waits == 0.0 else None)


def test_database_of_a_virtual_storage_needs_no_captured_tables(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    main = source.settings.database("main").model_copy(update={"tables": ()})
    storage = VirtualStorageSettings.model_validate(
        {"database": "main", "primary": "gitaly-0", "storages": {"gitaly-0": {"path": "/nowhere"}}}
    )
    walked = source.settings.model_copy(update={"databases": {"main": main}})
    assert "databases.main.tables is empty" in [
        each.problem for each in hindrances(source.connection, walked, "main", None)
    ]
    walked = walked.model_copy(update={"virtual_storages": {"default": storage}})
    assert hindrances(source.connection, walked, "main", None) == []


def test_dropped_slot_is_reported(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    source.drop_slot()
    finding = the_finding(source)
    assert f"but slot {source.slot} no longer exists" in finding.problem
    assert finding.remedy == AGAIN
    restart_from_scratch(source, finding)


def test_slot_under_creation_is_reported(new_source: NewSource, database: Database) -> None:
    source = new_source(TABLE, "public.t")
    with closing(database.connect(autocommit=False)) as slow, closing(database.connect()) as maker:
        slow.execute("INSERT INTO t VALUES (3)")
        maker.pgconn.send_query(f"SELECT pg_create_logical_replication_slot('{source.slot}', 'pgoutput')".encode())

        def waits() -> bool:
            state = slots.read(source.connection, source.slot)
            return state is not None and bool(blocking(source.connection, state.active_pid or 0))

        until(waits, "its maker to wait")
        finding = the_finding(source)
        assert (
            f"slot {source.slot} is still being created by process {maker.info.backend_pid}, which waits for a transac"
            in (finding.problem)
        )
        assert finding.remedy.startswith("End those transactions")


def test_recreated_slot_is_unusable_until_it_is_ready(new_source: NewSource, database: Database) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    source.drop_slot()
    with closing(database.connect(autocommit=False)) as slow, closing(database.connect()) as maker:
        slow.execute("INSERT INTO t VALUES (3)")
        maker.pgconn.send_query(f"SELECT pg_create_logical_replication_slot('{source.slot}', 'pgoutput')".encode())
        until(lambda: slots.read(source.connection, source.slot) is not None, "the slot to be begun")
        (_half_made, gap) = findings(source)
        assert f"but slot {source.slot} is only now being created by process {maker.info.backend_pid}" in gap.problem
        assert gap.remedy == AGAIN
        (seen,) = gather(source.settings)["sources"]
        assert seen["slot_status"] == "missing"


def test_slot_advanced_by_another_reader_is_reported(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    source.connection.execute("INSERT INTO t VALUES (3)")
    source.connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (source.slot,))
    finding = the_finding(source)
    assert "ahead of the topics" in finding.problem
    assert finding.remedy == AGAIN


def test_slot_behind_the_topics_resumes_without_duplicates(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    kept = f"k_{source.slot}"
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    source.connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source.slot, kept))
    source.connection.execute("INSERT INTO t VALUES (3), (4)")
    copy_all(source)
    source.drop_slot()
    source.connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (kept, source.slot))
    assert findings(source) == []
    source.connection.execute("INSERT INTO t VALUES (5)")
    copy_all(source)
    assert len(source.require_equal("public.t")) == 5


def test_slot_of_another_database_is_reported(
    new_source: NewSource, new_databases: Callable[[str | None], Database]
) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    other = new_databases(None)
    connection = other.connect()
    connection.execute(TABLE)
    section = {**source.settings.database("main").model_dump(), "dsn": other.dsn}
    databases = {"main": DatabaseSettings.model_validate(section)}
    settings = source.settings.model_copy(update={"databases": databases})
    finding = the_finding(Source(settings, connection))
    assert (
        finding.problem == f"slot {source.slot} belongs to database {source.connection.info.dbname}, not {other.name}"
    )
    assert finding.remedy.startswith("correct databases.main.dsn")


def test_database_recorded_under_another_name_is_reported(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    source.connection.execute("UPDATE headrace.database SET name = 'ci'")
    finding = the_finding(source)
    assert finding.problem == "the settings call this database main, but it is recorded as ci (headrace.database)"
    assert "correct databases.main.dsn" in finding.remedy
    assert "headrace switchover SCHEMA --from ci --to main" in finding.remedy


def test_stopped_table_is_reported(new_source: NewSource) -> None:
    source = new_source(f"{TABLE}; CREATE TABLE u (id int PRIMARY KEY, n int)", "public.t", "public.u")
    source.connection.execute("INSERT INTO u VALUES (1, 1)")
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE u ALTER n TYPE text; INSERT INTO u VALUES (2, '2')")
        until(lambda: source.state().snapshots["public.u"].stopped is not None, "the table is stopped")
    finding = the_finding(source)
    assert finding.problem.startswith("table public.u is stopped (")
    assert "headrace snapshot public.u --from-scratch" in finding.remedy


def test_topic_without_a_recorded_snapshot_is_reported(new_source: NewSource) -> None:
    source = new_source(f"{TABLE}; CREATE TABLE u (id int PRIMARY KEY)", "public.t", "public.u")
    copy_all(source)
    source.connection.execute("ALTER PUBLICATION headrace DROP TABLE t")
    finding = the_finding(source)
    assert finding.problem.startswith("table public.t is stopped (it was removed from the publication)")
    assert "`headrace snapshot public.t --from-scratch`" in finding.remedy


# On separate servers, which are damaged.


@pytest.fixture(scope="module")
def other_server() -> Iterator[EmbeddedPostgres]:
    with own_server() as running_server:
        yield running_server


@pytest.fixture
def elsewhere(other_server: EmbeddedPostgres, bootstrap_servers: str, prefix: str) -> Iterator[Source]:
    """A source on a server whose settings may be changed."""
    with copied(other_server, bootstrap_servers, prefix) as source:
        yield source
        for name in ("max_slot_wal_keep_size", "idle_replication_slot_timeout"):
            source.connection.execute(f"ALTER SYSTEM RESET {name}".encode())
        source.connection.execute("SELECT pg_reload_conf()")


def lost(source: Source) -> bool:
    """Run a checkpoint, which removes old WAL; return whether the slot lost its WAL."""
    source.connection.execute("CHECKPOINT")
    return source.slot_state().lost


@pytest.mark.long
def test_slot_lost_by_wal_removal_is_reported(elsewhere: Source, tmp_path: Path) -> None:
    until(lambda: elsewhere.slot_state().active_pid is None, "the slot to be free")
    set_to(elsewhere.connection, "max_slot_wal_keep_size", "32MB")
    for _ in range(4):
        elsewhere.connection.execute("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
    forecast = forecast_of(elsewhere)
    assert (forecast.status, forecast.at_risk) == ("unreserved", True)
    until(lambda: lost(elsewhere), "the slot is lost")
    config = write_settings(elsewhere.settings, tmp_path / "headrace.toml")
    told = check(config)
    assert told.returncode == 3
    finding, slot, *_advice = told.stdout.splitlines()
    assert f"slot {elsewhere.slot} was invalidated (wal_removed): its changes are lost; {AGAIN}" in finding
    assert "to prevent it: raise max_slot_wal_keep_size" in finding
    assert slot == f"databases.main: WARNING: slot {elsewhere.slot} is lost"
    as_json = json.loads(check(config, "--json").stdout)
    assert [each["where"] for each in as_json["findings"]] == ["databases.main"]
    (described,) = as_json["slots"]
    assert (described["source"], described["status"], described["lost_in_seconds"]) == ("main", "lost", 0)
    restart_from_scratch(elsewhere, the_finding(elsewhere))


def check(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "check", "--config", str(config), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_slot_lost_by_idle_timeout_is_reported(elsewhere: Source) -> None:
    until(lambda: elsewhere.slot_state().active_pid is None, "the slot to be free")
    set_to(elsewhere.connection, "idle_replication_slot_timeout", "1s")
    until(lambda: guardian_says(elsewhere).cause == slot_monitor.IDLE_TIMEOUT, "the setting is in force")
    until(lambda: lost(elsewhere), "the slot is lost")
    finding = the_finding(elsewhere)
    assert finding.problem == f"slot {elsewhere.slot} was invalidated (idle_timeout): its changes are lost"
    assert (
        finding.remedy == f"{AGAIN}; to prevent it: raise idle_replication_slot_timeout, or keep its producer running"
    )


def guardian_says(source: Source) -> Forecast:
    reading = slot_monitor.read(source.connection, source.slot)
    assert reading is not None
    return slot_monitor.forecast(reading, None)


def test_other_database_system_is_reported(new_source: NewSource, other_server: EmbeddedPostgres) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    other = at(source, other_server, "postgres")
    with other.connection:
        other.connection.execute(TABLE)
        finding = the_finding(other)
    assert "the topics of main come from database system" in finding.problem
    assert finding.remedy == f"correct databases.main.dsn, or {AGAIN}"
