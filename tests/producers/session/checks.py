"""Helpers for the tests of `headrace check`: its findings, and following a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from consumers.testing.waiting import until
from infra.settings.model import DatabaseSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.state.positions import Positions
from producers.session.check import hindrances, outlook
from producers.session.slot_monitor import Forecast
from producers.session.start_over import start_over
from producers.source.preflight import Finding
from tests.producers.sources import Source, copy_all, settings_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)"
AGAIN = "re-snapshot all tables with `headrace produce main --start-over`, which creates a new slot"


def findings(source: Source) -> list[Finding]:
    positions = Positions(source.settings.prefix, source.settings.kafka)
    return hindrances(source.connection, source.settings, "main", positions)


def the_finding(source: Source) -> Finding:
    (finding,) = findings(source)
    return finding


def forecast_of(source: Source) -> Forecast:
    positions = Positions(source.settings.prefix, source.settings.kafka)
    found = outlook(source.connection, source.settings, "main", positions)
    assert found is not None
    return found


def at(source: Source, server: EmbeddedPostgres, database: str | None = None) -> Source:
    """Return the same source with the dsn of another server; by default for the database of the same name."""
    database = database or source.settings.prefix
    section = {**source.settings.database("main").model_dump(), "dsn": server.dsn(database)}
    databases = {"main": DatabaseSettings.model_validate(section)}
    settings = source.settings.model_copy(update={"databases": databases})
    return Source(settings, psycopg.connect(server.dsn(database), autocommit=True))


def restart_from_scratch(source: Source, finding: Finding) -> None:
    """Follow the remedy, and fail unless it helps."""
    assert "headrace produce main --start-over" in finding.remedy
    start_over(source.settings, "main")
    copy_all(source)
    source.require_equal("public.t")
    assert findings(source) == []


@contextmanager
def copied(server: EmbeddedPostgres, bootstrap_servers: str, prefix: str) -> Iterator[Source]:
    """A source on a server, whose table is copied."""
    dsn = server.create_database(prefix)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
        source = Source(settings_for(bootstrap_servers, prefix, dsn, "public.t"), connection)
        copy_all(source)
        yield source


def set_to(connection: psycopg.Connection[Any], name: str, value: str) -> None:
    connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    connection.execute("SELECT pg_reload_conf()")
    # The server's processes reload one after another, including this one.
    shown = "SELECT current_setting(%s)"
    until(lambda: connection.execute(shown, (name,)).fetchone() == (value,), f"{name} = {value}")
