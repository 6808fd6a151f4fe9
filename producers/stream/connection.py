"""Reads a logical replication stream over psycopg's low-level connection (psycopg has no replication client).

`ReplicationStream` opens a slot, returns its frames in batches, answers the server and closes cleanly. Errors:
DatabaseUnavailable if the server is gone or ends the stream (reconnecting helps), and the classes below (it does not).
"""

from __future__ import annotations

import re
import select
import time
from functools import partial
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import pq

from infra.postgres.connect import pinned, slow_start, translated
from infra.postgres.passwords import opened
from infra.settings.database_login import Address, Where
from producers.stream.buffered import take_one, taking
from producers.stream.frames import Keepalive, Received, parse, status_update
from producers.stream.start_command import Streaming, for_replication, start_command
from schemas.errors import DatabaseUnavailable, Fenced, HeadraceError, Refused
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, format_lsn

_PASSING: Final = frozenset({"", "57P01", "57P02", "57P03", "53300"})
"""SQLSTATEs, next to class 08, that a retry may not meet: none at all, shutdowns, too many connections."""

_CANCELED: Final = b"57014"

_FAILED: Final = -2
"""PQgetCopyData's result when the connection was lost, or its data is invalid."""

_ANSWER_SECONDS: Final = 0.05
"""The least time between two status updates that the server requests."""

_READ_BYTES: Final = 16 * 1024 * 1024
"""The most that one read returns, except for its last frame: rows may be large, and callers limit only the number."""

_STANDBYS: Final = b"StandbySlotsHaveCaughtup"
"""The server's function that reports an awaited standby of synchronized_standby_slots. Its messages may be localized,
and other errors share their SQLSTATEs."""

_CLOSE_SECONDS: Final = 1.0
"""How long `close` waits for the end of the stream; the slot becomes inactive soon after in any case."""


class SlotInUse(Fenced):
    """Stop that process first if this one should run."""

    def __init__(self, slot: str, pid: int | None) -> None:
        reader = "another process" if pid is None else f"another process (server process {pid})"
        super().__init__(f"slot {slot} is in use by {reader}")
        self.pid = pid


class SlotMissing(Refused):
    """Create it and re-snapshot the tables: changes since the old slot's end may be missing."""


class SlotLost(Refused):
    """Drop and recreate the slot, then re-snapshot the tables: the changes that it retained are gone."""


class PublicationMissing(Refused):
    """Create the publication before the slot: a slot cannot send changes from before its publication."""


@dataclass(frozen=True)
class StreamOptions:
    """Options of a replication stream.

    `proto_version` defaults to the lowest that `streaming` requires; `status_interval` is in seconds. With
    `client_encoding` SQL_ASCII, text has the database's own bytes.
    """

    proto_version: int | None = None
    streaming: Streaming = Streaming.OFF
    messages: bool = True
    binary: bool = False
    application_name: str | None = None
    client_encoding: str = "UTF8"
    status_interval: float = 10.0


_USUAL: Final = StreamOptions()


class ReplicationStream:
    """A slot that is being read over its own connection, by one thread."""

    def __init__(
        self,
        where: Where,
        slot: str,
        publication: str,
        start: Lsn,
        options: StreamOptions = _USUAL,
    ) -> None:
        """Connect and start reading `slot` at `start` (or at the slot's confirmed position, if that is later).

        Raises UsageError (invalid arguments), DatabaseUnavailable, SlotInUse, SlotMissing, SlotLost,
        PublicationMissing, and HeadraceError with the server's message for anything else.
        """
        self.slot = slot
        self.publication = publication
        self._status_interval = options.status_interval
        self._received = start
        # The server ignores zero, but would accept `start` even past the end of its WAL.
        self._flushed = Lsn(0)
        self._end: HeadraceError | None = None
        self._unsent = False
        self._status_sent = self._status_due = 0.0
        self._skipped_publication: str | None = None
        command = start_command(
            slot,
            publication,
            start,
            version=options.proto_version,
            streaming=options.streaming,
            messages=options.messages,
            binary=options.binary,
        )
        self._address = for_replication(where, options.application_name, options.client_encoding)
        self._connection = _connect(self._address)
        try:
            self._connection.notice_handler = self._notice
            self._set_what_it_relies_on()
            self._check_publication()
            self._start(command)
            self._buffered = taking(self._connection)
            self._poll = select.poll()
            self._poll.register(self._connection.socket, select.POLLIN)
            self._send_status()
        except BaseException:
            self._connection.finish()
            raise

    def fileno(self) -> int:
        """The socket, for the caller's selector; buffered data does not make it readable."""
        return self._connection.socket

    @property
    def backend_pid(self) -> int:
        """The server's process of this stream."""
        return self._connection.backend_pid

    @property
    def flushed(self) -> Lsn:
        """The position last confirmed to the server; 0 before the first `confirm`."""
        return self._flushed

    @property
    def received(self) -> Lsn:
        """The WAL position that the server reports; it may not be confirmed."""
        return self._received

    def read(self, max_messages: int, timeout: float) -> list[Received]:
        """Return what the available frames contain, at most `max_messages`; wait up to `timeout` seconds for the first.

        An empty list means that it timed out. Also answers keepalives and sends due status updates, so it must be
        called more often than the server's wal_sender_timeout. Raises DatabaseUnavailable, SlotLost or
        PublicationMissing if the server ended the stream, once all frames before the end were returned.
        """
        deadline = time.monotonic() + timeout
        while True:
            frames: list[Received] = []
            try:
                self._take(frames, max_messages)
                now = time.monotonic()
                if now >= self._status_due:
                    self._send_status()
                if not frames and self._end is None and now < deadline:
                    self._wait(min(deadline, self._status_due) - now)
                    continue
            except psycopg.OperationalError as error:
                self._end = self._gone(str(error))
                self._end.__cause__ = error
            if self._end is not None and not frames:
                raise self._end
            return frames

    def confirm(self, flushed: Lsn) -> None:
        """Confirm everything up to `flushed`; the server never sends it again.

        Pass a commit's `end_lsn`, or a keepalive's `end` once all before it is safe. A lower position than before is
        ignored. Raises DatabaseUnavailable.
        """
        self._flushed = max(self._flushed, flushed)
        self._received = max(self._received, flushed)
        try:
            self._send_status()
        except psycopg.OperationalError as error:
            raise self._gone(str(error)) from error

    def close(self) -> None:
        """Close the stream and the connection; never raises, idempotent."""
        connection = self._connection
        try:
            if connection.status == pq.ConnStatus.OK:
                connection.put_copy_end()
                self._unsent = connection.flush() == 1
                deadline = time.monotonic() + _CLOSE_SECONDS
                while self._unfinished():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._wait(left)
        except psycopg.Error:
            pass  # the connection is already gone
        finally:
            connection.finish()
            self._buffered = partial(take_one, connection)  # C has the address of what is gone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, frames: list[Received], max_messages: int) -> None:
        """Add what the available frames contain to `frames`; detect the end of the stream."""
        reply = False
        fresh = False
        left = _READ_BYTES
        while self._end is None and len(frames) < max_messages and left > 0:
            messages, end, used, size, other = self._buffered(max_messages - len(frames), left)
            frames += messages
            left -= used
            fresh = fresh and used == 0
            self._received = max(self._received, end)
            if other is not None:
                frame = parse(other)
                assert isinstance(frame, Keepalive)
                frames.append(frame)
                reply = reply or frame.reply_requested
                self._received = max(self._received, frame.end)
            elif size == 0:
                if fresh:
                    break
                # libpq reads from the socket only here.
                self._connection.consume_input()
                fresh = True
            elif size == _FAILED:
                raise psycopg.OperationalError(self._connection.get_error_message())
            elif size < 0:
                self._end = self._ended()
        if self._skipped_publication is not None:
            raise PublicationMissing(self._skipped_publication)
        if reply:
            # A server that shuts down repeats its request after each answer until all is confirmed: avoid a busy loop.
            self._status_due = min(self._status_due, self._status_sent + _ANSWER_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait until the socket is readable (or writable with unsent data), then read (and flush)."""
        events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        self._poll.modify(self._connection.socket, events)
        if self._poll.poll(max(0.0, seconds) * 1000):
            if self._unsent:
                self._unsent = self._connection.flush() == 1
            self._connection.consume_input()

    def _send_status(self) -> None:
        clock_ms = time.time_ns() // 1_000_000
        self._connection.put_copy_data(
            status_update(written=self._received, flushed=self._flushed, applied=self._flushed, clock_ms=clock_ms)
        )
        self._unsent = self._connection.flush() == 1
        self._status_sent = time.monotonic()
        self._status_due = self._status_sent + self._status_interval

    def _start(self, command: bytes) -> None:
        result = self._connection.exec_(command)
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._error(result, starting=True)
        self._connection.nonblocking = 1

    def _set_what_it_relies_on(self) -> None:
        """Set session settings, such as no transaction_timeout, which would end the decoding of large transactions."""
        result = self._connection.exec_(pinned(self._connection.server_version, reading=True))
        if result.error_field(pq.DiagnosticField.SQLSTATE) == _CANCELED:
            raise slow_start(self._address, _line(result))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error(result, starting=True)

    def _check_publication(self) -> None:
        # PostgreSQL 18 continues without a missing publication, which would lose its changes.
        name = pq.Escaping(self._connection).escape_literal(self.publication.encode())
        result = self._connection.exec_(
            b"SELECT 1 FROM pg_catalog.pg_publication WHERE pubname::pg_catalog.text = " + name
        )
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error(result, starting=True)
        if result.ntuples == 0:
            raise PublicationMissing(f"publication {self.publication} does not exist")

    def _notice(self, notice: pq.abc.PGresult) -> None:
        """Remember PostgreSQL 18's warning that it skips a publication; exceptions are lost in here.

        Warnings about an awaited standby repeat about every second and are ignored: see infra.postgres.standbys.
        """
        field = notice.error_field
        if (
            field(pq.DiagnosticField.SQLSTATE) == b"55000"
            and field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) == b"WARNING"
            and field(pq.DiagnosticField.SOURCE_FUNCTION) != _STANDBYS
        ):
            self._skipped_publication = f"slot {self.slot}: {_line(notice)}"

    def _unfinished(self) -> bool:
        """Discard remaining data; return whether the server has not ended the stream yet."""
        size = 1
        while size > 0:
            size, _ = self._connection.get_copy_data(1)
        return size == 0

    def _ended(self) -> HeadraceError:
        """Return the error for a stream that the server ended."""
        result = self._connection.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return self._error(result, starting=False)
        return self._gone("the server ended the stream")

    def _error(self, result: pq.abc.PGresult, *, starting: bool) -> HeadraceError:
        """Return the error for a result's SQLSTATE."""
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        line = _line(result)
        where = f"slot {self.slot}: {line}"
        if state == "55006":  # object_in_use; the pid is the last number in every language
            found = re.search(r"(\d+)\D*$", line)
            return SlotInUse(self.slot, int(found[1]) if found else None)
        # A server that shuts down does not wait for standbys, and reports that as an error.
        standby = result.error_field(pq.DiagnosticField.SOURCE_FUNCTION) == _STANDBYS
        if state in _PASSING or state.startswith("08") or standby:
            return self._gone(line)
        if state == "42704":  # undefined_object
            return SlotMissing(where) if starting else PublicationMissing(where)
        if state in {"42501", "28000", "28P01"}:
            remedy = "give the role LOGIN and REPLICATION, and allow it in pg_hba.conf"
        elif state == "58P01" or (starting and self._is_lost()):  # undefined_file: a segment was removed
            return SlotLost(where)
        else:
            remedy = "fix what the server reports"
        return HeadraceError(where, remedy=remedy)

    def _is_lost(self) -> bool:
        """Query the slot, since object_not_in_prerequisite_state has a dozen other causes."""
        name = pq.Escaping(self._connection).escape_literal(self.slot.encode())
        result = self._connection.exec_(
            b"SELECT 1 FROM pg_catalog.pg_replication_slots WHERE wal_status = 'lost' AND slot_name = " + name
        )
        return result.ntuples == 1

    def _gone(self, line: str) -> DatabaseUnavailable:
        line = " ".join(line.split())
        return DatabaseUnavailable(
            f"the replication stream of slot {self.slot} ended at {format_lsn(self._received)}: {line}"
        )


def _connect(address: Address) -> pq.abc.PGconn:
    with translated(address):
        return opened(address, _connected)


def _connected(dsn: str) -> pq.abc.PGconn:
    connection = pq.PGconn.connect(dsn.encode())
    if connection.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(connection.get_error_message(), pgconn=connection)
    return connection


def _line(result: pq.abc.PGresult) -> str:
    """Return the server's message and detail as one line."""
    fields = (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_DETAIL)
    texts = [text.decode(errors="replace") for text in map(result.error_field, fields) if text]
    return " ".join(" ".join(texts).split()) or " ".join(result.get_error_message().split())
