"""COPY through libpq's own functions, over TLS: the same lines, errors and limits as line by line."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import pq
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.postgres import copy_out, libpq
from infra.stack.postgresql.server import EmbeddedPostgres
from schemas.codec import implementation
from tests.conftest import Database, new_database
from tests.security.authority import Authority
from tests.security.secured_postgres import tls_server
from tests.server_versions import NoSuchServer

EXTENSION: Final = sys.modules[pq.PGconn.__module__].__file__ or ""
COMPILED = pytest.param(
    True, marks=pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
)

MAIN: Final = threading.get_ident()

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        Path(place).chmod(0o755)
        try:
            with tls_server(Authority(Path(place), "authority")) as running:
                yield running
        except NoSuchServer as error:
            pytest.skip(f"no PostgreSQL with TLS: {error}")


@pytest.fixture
def secured(server: EmbeddedPostgres) -> Iterator[Database]:
    with new_database(server) as fresh:
        yield Database(fresh.name, make_conninfo(fresh.dsn, sslmode="require"), fresh._opened)


@pytest.fixture
def connection(secured: Database) -> Connection:
    connection = secured.connect()
    assert connection.pgconn.ssl_in_use
    assert not copy_out.possible(connection.pgconn)
    return connection


def lines(connection: Connection, query: str, compiled: bool) -> copy_out.Lines:
    statement = f"COPY ({query}) TO STDOUT".encode()
    return copy_out.through_libpq(connection.pgconn, statement, compiled=compiled)


def works(connection: Connection) -> bool:
    return connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.stack
@pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 WHERE false",
        "SELECT i, repeat('é\t\n', i % 7), NULLIF(i, 3) FROM generate_series(1, 50000) i",
        "SELECT repeat('x', 5000000) FROM generate_series(1, 3)",
        "SELECT repeat('x', (random() * i)::int) FROM generate_series(1, 20000, 13) i",
        "SELECT FROM generate_series(1, 3)",
    ],
)
def test_lines_are_those_taken_one_by_one(connection: Connection, query: str) -> None:
    for _ in range(2):
        connection.execute("SELECT setseed(0.5)")
        expected = lines(connection, query, compiled=False)
        connection.execute("SELECT setseed(0.5)")
        assert lines(connection, query, compiled=True) == expected
        connection.execute("SELECT setseed(0.5)")
        assert copy_out.copy_lines(connection, f"COPY ({query}) TO STDOUT".encode()) == expected
    assert works(connection)


@pytest.mark.stack
@pytest.mark.parametrize("compiled", [COMPILED, False])
def test_error_leaves_the_connection_usable(connection: Connection, compiled: bool) -> None:
    for begin in ("SELECT 1", "BEGIN"):
        for query, error in (
            ("SELECT 1 / (15000 - i) FROM generate_series(1, 20000) i", psycopg.errors.DivisionByZero),
            ("SELECT * FROM nothing", psycopg.errors.UndefinedTable),
        ):
            connection.execute(begin)
            with pytest.raises(error):
                lines(connection, query, compiled)
            connection.execute("ROLLBACK")
            assert works(connection)


WIDE: Final = b"COPY (SELECT i, repeat('x', 100000) FROM generate_series(1, 1000) i) TO STDOUT"


def _refused() -> None:
    raise psycopg.OperationalError("no more connections")


@pytest.mark.stack
@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("compiled", [COMPILED, False])
def test_lines_end_at_the_byte_limit(connection: Connection, compiled: bool, refused: bool) -> None:
    cancel = _refused if refused else connection.cancel_safe

    def limited(query: bytes, most: int, longest: int = 1 << 40) -> copy_out.Lines:
        return copy_out.through_libpq(connection.pgconn, query, most, longest, cancel, compiled=compiled)

    for begin in (b"SELECT 1", b"BEGIN"):
        connection.execute(begin)
        found = limited(WIDE, 3_000_000)
        assert (found.whole, found.rows, found.data.count(b"\n")) == (False, 29, 29)
        connection.execute("ROLLBACK")
        assert works(connection)
    assert limited(WIDE, 10).rows == 1
    assert limited(WIDE, 1 << 30).whole
    with pytest.raises(copy_out.LineTooLong) as raised:
        limited(WIDE.replace(b"100000", b"3000000").replace(b"1000)", b"5)"), 1 << 30, 2_000_000)
    assert raised.value.size == 3_000_003
    mixed = WIDE.replace(b"100000", b"CASE i WHEN 3 THEN 3000000 ELSE 3 END")
    assert limited(mixed, 1 << 30, 2_000_000) == copy_out.Lines(b"1\txxx\n2\txxx\n", 2, False)
    assert works(connection)


def cut(connection: Connection, _: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def cancel(connection: Connection, other: Connection) -> None:
    other.execute("SELECT pg_cancel_backend(%s)", (connection.pgconn.backend_pid,))


def terminate(connection: Connection, other: Connection) -> None:
    other.execute("SELECT pg_terminate_backend(%s)", (connection.pgconn.backend_pid,))


def interrupt(_connection: Connection, _other: Connection) -> None:
    signal.pthread_kill(MAIN, signal.SIGINT)


SLEEPING: Final = """
SELECT i, repeat('x', 1000), pg_sleep(CASE i WHEN 2000 THEN 500 ELSE 0 END) FROM generate_series(1, 3000) i
"""


def end_copy(secured: Database, compiled: bool, how: Callable[[Connection, Connection], None]) -> tuple[object, bool]:
    """Copy until the server sleeps between two rows, then end it; return what was raised, and if it still works."""
    connection, other = secured.connect(), secured.connect()
    backend = (connection.pgconn.backend_pid,)

    def asleep() -> bool:
        found = other.execute("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", backend).fetchone()
        return found == ("PgSleep",)

    def end() -> None:
        until(asleep, "the server sleeps")
        how(connection, other)

    thread = threading.Thread(target=end)
    thread.start()
    raised: object = None
    try:
        lines(connection, SLEEPING, compiled)
    except (KeyboardInterrupt, psycopg.Error) as error:
        raised = type(error)
    thread.join()
    other.execute("SELECT pg_terminate_backend(%s)", backend) if connection.closed else None
    return raised, not connection.closed and works(connection)


@pytest.mark.stack
@pytest.mark.parametrize("compiled", [COMPILED, False])
@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        (cancel, (psycopg.errors.QueryCanceled, True)),
        (terminate, (psycopg.OperationalError, False)),
        (cut, (psycopg.OperationalError, False)),
    ],
)
def test_copy_that_is_ended_raises_and_the_connection_works_or_is_closed(
    secured: Database,
    compiled: bool,
    how: Callable[[Connection, Connection], None],
    outcome: tuple[type[psycopg.Error], bool],
) -> None:
    assert end_copy(secured, compiled, how) == outcome


@pytest.mark.stack
@pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
def test_interrupt_ends_a_copy_that_waits(secured: Database) -> None:
    assert end_copy(secured, True, interrupt) == (KeyboardInterrupt, False)


@pytest.mark.stack
@pytest.mark.parametrize("compiled", [COMPILED, False])
def test_statement_timeout_leaves_the_connection_usable(connection: Connection, compiled: bool) -> None:
    connection.execute("SET statement_timeout = '1s'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        lines(connection, SLEEPING, compiled)
    assert works(connection)


@pytest.mark.stack
def test_libpq_is_the_one_that_reads_the_connection(connection: Connection) -> None:
    found = libpq.loaded(connection.pgconn)
    assert found is not None
    address = found.connection

    class Another:
        """A connection that has another socket for the library found than for psycopg."""

        __module__ = pq.PGconn.__module__
        pgconn_ptr = address
        socket = connection.pgconn.socket + 1

    assert libpq.loaded(Another()) is None  # type: ignore[arg-type]


def test_library_is_found_by_what_psycopg_is_linked_with() -> None:
    assert libpq.linked(EXTENSION, pq.version()) is not None


@pytest.mark.parametrize(
    ("extension", "version"),
    [
        (EXTENSION, pq.version() + 1),
        (socket.__file__, pq.version()),
        (sys.modules["_ctypes"].__file__ or "", pq.version()),
        ("/nowhere/libpq.so", pq.version()),
    ],
    ids=["another version", "no library", "not linked with libpq", "not loaded"],
)
def test_library_that_is_not_psycopgs_is_not_used(extension: str, version: int) -> None:
    assert libpq.linked(extension, version) is None


def test_psycopg_without_an_extension_is_read_line_by_line() -> None:
    class InPython:
        __module__ = "socket"
        pgconn_ptr = 1
        socket = 1

    assert libpq.loaded(InPython()) is None  # type: ignore[arg-type]
