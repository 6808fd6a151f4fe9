"""COPY without libpq: the same lines, the same errors, and a connection that is usable or closed."""

from __future__ import annotations

import socket
import struct
import threading
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.postgres import copy_out
from schemas.codec import implementation
from tests.conftest import Database

pytestmark = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")

ROWS = "SELECT i, repeat('é\t\n', i % 7), NULLIF(i, 3) FROM generate_series(1, {}) i"


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect()
    assert copy_out.possible(connection.pgconn)
    return connection


def copied(connection: psycopg.Connection[Any], query: str) -> tuple[bytes, int]:
    lines = copy_out.copy_out(connection.pgconn, f"COPY ({query}) TO STDOUT".encode())
    assert lines.whole
    return lines.data, lines.rows


def works(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.stack
@pytest.mark.parametrize("rows", [0, 1, 20_000])
def test_the_lines_are_those_of_libpq(connection: psycopg.Connection[Any], rows: int) -> None:
    query = f"COPY ({ROWS.format(rows)}) TO STDOUT".encode()
    lines = copy_out.through_libpq(connection.pgconn, query, compiled=False)
    assert lines.rows == lines.data.count(b"\n") == rows
    for _ in range(2):
        assert copy_out.copy_out(connection.pgconn, query) == lines
        assert copy_out.through_libpq(connection.pgconn, query) == lines
    assert works(connection)


@pytest.mark.stack
def test_a_row_longer_than_a_read(connection: psycopg.Connection[Any]) -> None:
    data, rows = copied(connection, "SELECT repeat('x', 5000000) FROM generate_series(1, 2)")
    assert (data, rows) == ((b"x" * 5_000_000 + b"\n") * 2, 2)


@pytest.mark.stack
@pytest.mark.parametrize("begin", ["SELECT 1", "BEGIN"])
def test_an_error_leaves_the_connection_usable(connection: psycopg.Connection[Any], begin: str) -> None:
    for query, error in (
        ("SELECT 1 / (15000 - i) FROM generate_series(1, 20000) i", psycopg.errors.DivisionByZero),
        ("SELECT * FROM nothing", psycopg.errors.UndefinedTable),
        ("SELEC", psycopg.errors.SyntaxError),
    ):
        connection.execute(begin.encode())
        with pytest.raises(error) as raised:
            copied(connection, query)
        assert raised.value.sqlstate == error.sqlstate
        connection.execute("ROLLBACK")
        assert works(connection)


@pytest.mark.stack
def test_asynchronous_messages_are_skipped(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "CREATE FUNCTION said(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE NOTICE 'row %', i; PERFORM set_config('TimeZone', 'UTC', false); RETURN i; END $$"
    )
    assert copied(connection, "SELECT said(i) FROM generate_series(1, 3) i") == (b"1\n2\n3\n", 3)
    assert works(connection)


@pytest.mark.stack
def test_a_connection_that_is_ended_is_closed(connection: psycopg.Connection[Any], database: Database) -> None:
    with pytest.raises(psycopg.OperationalError):
        copied(connection, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert connection.closed
    connection = database.connect()
    connection.pgconn.finish()
    assert not copy_out.possible(connection.pgconn)


class Conversation:
    """A connection whose server says what it is given, in pieces, and then hangs up."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._mine, self._servers = socket.socketpair()
        self._mine.setblocking(False)
        self.closed = False
        self.asked = b""
        self._thread = threading.Thread(target=self._speak, args=(pieces,))
        self._thread.start()

    @property
    def socket(self) -> int:
        return self._mine.fileno()

    def _speak(self, pieces: list[bytes]) -> None:
        with self._servers:
            self.asked = self._servers.recv(1 << 16)
            for piece in pieces:
                self._servers.sendall(piece)

    def finish(self) -> None:
        self.closed = True

    def end(self) -> None:
        self._thread.join()
        assert not self._mine.getblocking()
        self._mine.close()


def say(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


HELLO, BYE = say(b"H", b"\0\0\1\0\0"), say(b"c") + say(b"C", b"COPY 2\0") + say(b"Z", b"I")


def hear(pieces: list[bytes]) -> tuple[object, bool]:
    conversation = Conversation(pieces)
    try:
        lines = copy_out.copy_out(conversation, b"COPY t TO STDOUT")  # type: ignore[arg-type]
        found: object = lines.data, lines.rows
    except psycopg.Error as error:
        found = type(error)
    conversation.end()
    assert conversation.asked == b"Q\0\0\0\x15COPY t TO STDOUT\0"
    return found, conversation.closed


@given(st.sets(st.integers(1, 60)))
def test_messages_may_be_cut_anywhere(cuts: set[int]) -> None:
    whole = HELLO + say(b"d", b"d\0\0\n") + say(b"N", b"SNOTICE\0\0") + say(b"d", b"\n") + BYE
    places = [0, *sorted(cuts), len(whole)]
    pieces = [whole[start:stop] for start, stop in pairwise(places)]
    assert hear([piece for piece in pieces if piece]) == ((b"d\0\0\n\n", 2), False)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        HELLO,
        HELLO + say(b"d", b"1\n"),
        HELLO + say(b"d", b"1\n")[:6],
        HELLO + b"d\0\0\0\3",
        HELLO + b"c\0\0\0\0",
        say(b"G", b"\0\0\0"),
        say(b"T") + say(b"Z", b"I"),
        HELLO + BYE + say(b"d", b"1\n"),
        say(b"E", b"SFATAL\0C57P01\0Mgone\0\0"),
    ],
    ids=repr,
)
def test_unexpected_message_closes_the_connection(said: bytes) -> None:
    assert hear([said]) == (psycopg.OperationalError, True)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (b"SERROR\0C22012\0Mdivision by zero\0\0", psycopg.errors.DivisionByZero),
        (b"SERROR\0CZZZZZ\0Mof an extension\0\0", psycopg.DatabaseError),
        (b"\0", psycopg.DatabaseError),
    ],
)
def test_an_error_is_psycopgs_own(fields: bytes, error: type[psycopg.Error]) -> None:
    assert hear([HELLO, say(b"d", b"1\n"), say(b"E", fields) + say(b"Z", b"E")]) == (error, False)


WIDE = b"COPY (SELECT i, repeat('x', 100000) FROM generate_series(1, 1000) i) TO STDOUT"


def test_fields_of_the_last_line() -> None:
    lines = copy_out.Lines(b"1\ta\tb\n2\t\\tc\t\n", 2)
    assert lines.last([0]) == [b"2"]
    assert lines.last([2, 1]) == [b"", b"\\tc"]
    assert copy_out.Lines(b"only\n", 1).last([0]) == [b"only"]


@pytest.mark.stack
@pytest.mark.parametrize("past_libpq", [True, False])
def test_lines_end_at_the_byte_limit_and_the_connection_stays_usable(
    connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, past_libpq: bool
) -> None:
    monkeypatch.setattr(copy_out, "possible", lambda _: past_libpq)
    for begin in (b"SELECT 1", b"BEGIN"):
        connection.execute(begin)
        lines = copy_out.copy_lines(connection, WIDE, most=3_000_000)
        assert not lines.whole
        assert lines.rows == lines.data.count(b"\n") > 20
        assert 2_900_000 < len(lines.data) <= 3_000_000
        connection.execute("ROLLBACK")
        assert works(connection)
    assert copy_out.copy_lines(connection, WIDE, most=10).rows == 1
    assert copy_out.copy_lines(connection, WIDE, most=1 << 30).whole
    with pytest.raises(copy_out.LineTooLong) as raised:
        copy_out.copy_lines(connection, WIDE.replace(b"100000", b"5000000"), longest=4_000_000)
    assert raised.value.size == 5_000_003
    mixed = WIDE.replace(b"100000", b"CASE i WHEN 3 THEN 5000000 ELSE 3 END")
    assert copy_out.copy_lines(connection, mixed, longest=4_000_000) == copy_out.Lines(b"1\txxx\n2\txxx\n", 2, False)
    assert works(connection)


def _refused() -> None:
    raise psycopg.OperationalError("no more connections")


@pytest.mark.stack
def test_rest_is_dropped_if_the_query_cannot_be_canceled(connection: psycopg.Connection[Any]) -> None:
    lines = copy_out.copy_out(connection.pgconn, WIDE, 3_000_000, cancel=_refused)
    assert (lines.whole, lines.rows < 50) == (False, True)
    assert works(connection)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_dropped_line_may_be_split_anywhere(parts: int) -> None:
    whole = HELLO + say(b"d", b"1\n") + say(b"d", b"x" * 90 + b"\n") * 2 + say(b"d", b"2\n") + BYE
    conversation = Conversation([whole[at : at + parts] for at in range(0, len(whole), parts)])
    lines = copy_out.copy_out(conversation, b"COPY t TO STDOUT", 20)  # type: ignore[arg-type]
    conversation.end()
    assert lines == copy_out.Lines(b"1\n", 1, False)
    assert not conversation.closed
