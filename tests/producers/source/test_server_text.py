"""Databases with encodings other than UTF-8: keys in the server's byte order, invalid bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.connect import connect
from infra.state.positions import SnapshotState
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.resnapshot_request import ask
from producers.source.tables import UnusableName, captured_tables
from tests.conftest import encoded_database
from tests.producers.sources import Source, running, settings_for

pytestmark = pytest.mark.stack

SNAPSHOT = SnapshotState(source="main", table="", topic="")

Encoded = Callable[..., Source]


@pytest.fixture
def encoded(stack: object, bootstrap_servers: str, prefix: str) -> Iterator[Encoded]:
    """A function `(encoding, ddl, *tables, **more)` that makes a source in a database of that encoding."""
    with ExitStack() as made:

        def make(encoding: str, ddl: str, *tables: str, **more: Any) -> Source:
            dsn = made.enter_context(encoded_database(stack.postgres, encoding)).dsn  # type: ignore[attr-defined]
            application = made.enter_context(closing(psycopg.connect(dsn, autocommit=True, client_encoding="UTF8")))
            application.execute(ddl.encode())
            return Source(settings_for(bootstrap_servers, prefix, dsn, *tables, **more), application)

        yield make


@pytest.mark.parametrize(
    ("encoding", "letters", "raw", "reason"),
    [
        # By WIN1252 € is before é, in UTF-8 after it; by EUC_JP half-width kana are before kanji, in UTF-8 after them.
        ("WIN1252", "a€é", "81", "0x81"),
        ("EUC_JP", "a亜ｱ丂", "adf0", "EUC_JP encodes twice"),
        ("SQL_ASCII", "a€é", "e9", "not UTF-8|0xe9"),
    ],
)
def test_keys_in_server_order_are_complete_and_invalid_bytes_stop_only_their_table(
    encoded: Encoded, encoding: str, letters: str, raw: str, reason: str
) -> None:
    """`raw` is in hexadecimal: characters that UTF-8 lacks, or in EUC_JP has one for two."""
    name = f"t{letters[1]}"
    bad = ("copied", "streamed")
    source = encoded(
        encoding,
        f'CREATE TABLE t (k text PRIMARY KEY, n int); CREATE TABLE "{name}" ("{name}" text PRIMARY KEY);'
        f" INSERT INTO t SELECT c || i, 0 FROM unnest(ARRAY{list(letters)}) c, generate_series(1, 30) i;"
        + "".join(f"CREATE TABLE {each} (k text PRIMARY KEY);" for each in bad),
        *(f"public.{each}" for each in ("t", name, *bad)),
        snapshot={"chunk_rows": 7},
    )
    dsn = source.settings.database("main").dsn.get_secret_value()
    with psycopg.connect(dsn, autocommit=True, client_encoding="SQL_ASCII") as writer:
        # Written as by a client with the database's encoding.
        text = b"('" + bytes.fromhex(raw) + b"')"
        writer.execute(b"INSERT INTO copied VALUES " + text)
        for start in range(2):
            with running(source) as producer:
                for round_ in range(5 * start, 5 * start + 5):
                    source.connection.execute("UPDATE t SET n = %s", (round_,))
                    source.connection.execute("DELETE FROM t WHERE k LIKE %s", (f"%{round_ + 20}",))
                    source.connection.execute(f'INSERT INTO "{name}" VALUES (%s)'.encode(), (letters[-1] * round_,))
                if not start:
                    until(lambda: done(source, "public.streamed"), "the snapshot")
                    writer.execute(b"INSERT INTO streamed VALUES " + text)
                until(lambda: all(stopped(source, f"public.{each}") for each in bad), "the reasons")
                if start:
                    ask(source.settings, "main", SnapshotRequest(table="public.t", first=(letters[-1],)))
                until(lambda: done(source, "public.t") and done(source, f"public.{name}"), "the others")
                source.passes(producer.check)
    stream = source.state().stream
    assert stream is not None
    assert stream.refused_request is None
    source.require_equal("public.t")
    source.require_equal(f"public.{name}")
    for each in bad:
        assert re.search(f"{reason}|the bytes {raw}", stopped(source, f"public.{each}"))


def test_a_name_that_is_not_utf8_is_refused_by_name(encoded: Encoded) -> None:
    """Also one of a table that is not captured: the server sends no list that has it."""
    source = encoded("SQL_ASCII", "CREATE TABLE t (k text PRIMARY KEY)", "public.t")
    database = source.settings.database("main")
    dsn = database.dsn.get_secret_value()
    with psycopg.connect(dsn, autocommit=True, client_encoding="SQL_ASCII") as writer:
        writer.execute(b'CREATE TABLE "caf\xe9" (k text PRIMARY KEY)')
        with connect(dsn, name="test") as connection, pytest.raises(UnusableName, match=r"is not UTF-8: .*0xe9"):
            captured_tables(connection, "main", database, source.settings.prefix)
        writer.execute(b'ALTER TABLE "caf\xe9" RENAME TO cafe')
    with running(source) as producer:
        producer.caught_up()


def done(source: Source, table: str) -> bool:
    return source.state().snapshots.get(table, SNAPSHOT).done


def stopped(source: Source, table: str) -> str:
    return source.state().snapshots.get(table, SNAPSHOT).stopped or ""
