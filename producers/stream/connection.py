"""One logical replication stream, over psycopg's low-level connection (psycopg has no replication client).

`ReplicationStream` opens a slot, hands out its frames in batches, answers the server and ends cleanly.
Errors: DatabaseUnavailable when the server is gone or ends the stream (opening it again helps), and the
classes below, for which it doesn't.
"""

from __future__ import annotations

import re
import select
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import pq

from infra.postgres.connect import pinned, translated
from producers.stream.frames import Frame, Keepalive, parse, status_update
from producers.stream.start_command import Streaming, conninfo, start_command
from schemas.errors import DatabaseUnavailable, Fenced, HeadraceError, Refused
from schemas.positions import Lsn, format_lsn

_PASSING: Final = frozenset({"", "57P01", "57P02", "57P03", "53300"})
"""SQLSTATEs beside class 08 that another try may not meet: none at all, shutdowns, too many connections."""

_CANCELED: Final = b"57014"

_ANSWER_SECONDS: Final = 0.05
"""How soon after the last status the server may have another for the asking."""

_READ_BYTES: Final = 16 * 1024 * 1024
"""What one read returns at most, but for its last frame: rows may be large, and frames are asked for by number."""

_STANDBYS: Final = b"StandbySlotsHaveCaughtup"
"""The server's function that names a standby of synchronized_standby_slots for which it waits. Its messages may be in
any language, and their SQLSTATEs are those of others too."""

_CLOSE_SECONDS: Final = 1.0
"""How long a close waits for the server's farewell; the slot is free either way, at the latest soon after."""


class SlotInUse(Fenced):
    """Stop that process first if this one should run."""

    def __init__(self, slot: str, pid: int | None) -> None:
        reader = "another process" if pid is None else f"the server's process {pid} for another reader"
        super().__init__(f"slot {slot} is held by {reader}")
        self.pid = pid


class SlotMissing(Refused):
    """Create it, and read the tables anew: changes since the old slot's end may be unknown."""


class SlotLost(Refused):
    """Drop the slot, create it again, and read the tables anew: the changes that it kept are gone."""


class PublicationMissing(Refused):
    """Create the publication before the slot: a slot cannot tell what was not published at that time."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a slot is read.

    `proto_version` is by default the lowest that `streaming` needs; `status_interval` is in seconds. With the
    `client_encoding` SQL_ASCII text comes in the database's own bytes.
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
    """A slot that is being read; the connection is its own and used by one thread."""

    def __init__(
        self,
        dsn: str,
        slot: str,
        publication: str,
        start: Lsn,
        options: StreamOptions = _USUAL,
    ) -> None:
        """Connect and start reading `slot` at `start` (or at what the slot has confirmed, if that is later).

        Raises UsageError (impossible arguments), DatabaseUnavailable, SlotInUse, SlotMissing, SlotLost,
        PublicationMissing, and HeadraceError with the server's own words for anything else.
        """
        self.slot = slot
        self.publication = publication
        self._status_interval = options.status_interval
        self._received = start
        # Zero says nothing to the server; `start` would be believed, even past the end of its log.
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
        self._connection = _connect(conninfo(dsn, options.application_name, options.client_encoding))
        try:
            self._connection.notice_handler = self._notice
            self._set_what_it_relies_on()
            self._check_publication()
            self._start(command)
            self._poll = select.poll()
            self._poll.register(self._connection.socket, select.POLLIN)
            self._send_status()
        except BaseException:
            self._connection.finish()
            raise

    def fileno(self) -> int:
        """The socket, for a selector of the caller's; what is buffered already doesn't make it readable."""
        return self._connection.socket

    @property
    def flushed(self) -> Lsn:
        """What the server was last told to be safe; 0 before the first `confirm`."""
        return self._flushed

    @property
    def received(self) -> Lsn:
        """How far the server says it has read the log; not what may be confirmed."""
        return self._received

    def read(self, max_messages: int, timeout: float) -> list[Frame]:
        """Return the frames that are there, at most `max_messages`; wait up to `timeout` seconds for a first.

        An empty list means that none came in time. Also answers the server's keepalives and sends a status
        when one is due, so it must be called more often than the server's wal_sender_timeout.
        Raises DatabaseUnavailable, SlotLost or PublicationMissing when the server ended the stream, once
        everything that came before the end was handed out.
        """
        deadline = time.monotonic() + timeout
        while True:
            frames: list[Frame] = []
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
        """Tell the server that everything up to `flushed` is safe; it may forget it, for ever.

        Pass a commit's `end_lsn`, or a keepalive's `end` when all before it is safe. A lower one than before
        is the same as the one before. Raises DatabaseUnavailable.
        """
        self._flushed = max(self._flushed, flushed)
        self._received = max(self._received, flushed)
        try:
            self._send_status()
        except psycopg.OperationalError as error:
            raise self._gone(str(error)) from error

    def close(self) -> None:
        """End the stream and the connection; never raises, and may be called twice."""
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
            pass  # it is gone, which is as closed as can be
        finally:
            connection.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, frames: list[Frame], max_messages: int) -> None:
        """Add the frames that need no waiting to `frames`; notice the end."""
        get = self._connection.get_copy_data
        append = frames.append
        reply = False
        fresh = False
        left = _READ_BYTES
        while self._end is None and len(frames) < max_messages and left > 0:
            size, view = get(1)
            if size > 0:
                left -= size
                frame = parse(view)
                append(frame)
                fresh = False
                if type(frame) is Keepalive:
                    reply = reply or frame.reply_requested
                    self._received = max(self._received, frame.end)
            elif size == 0:
                if fresh:
                    break
                # libpq takes from the socket only when told to.
                self._connection.consume_input()
                fresh = True
            else:
                self._end = self._ended()
        if frames and type(last := frames[-1]) is not Keepalive:
            self._received = max(self._received, last.end)
        if self._skipped_publication is not None:
            raise PublicationMissing(self._skipped_publication)
        if reply:
            # A server that shuts down asks again after each answer until all is confirmed: don't spin with it.
            self._status_due = min(self._status_due, self._status_sent + _ANSWER_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait until the socket is readable (or writable with something left to send), then act on it."""
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
        """Among it: no transaction_timeout, which ends the decoding of a large transaction, at every start."""
        result = self._connection.exec_(pinned(self._connection.server_version, reading=True))
        if result.error_field(pq.DiagnosticField.SQLSTATE) == _CANCELED:
            # By the role's statement_timeout, which holds until this statement has set ours: the server is overloaded.
            raise self._gone(_line(result))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error(result, starting=True)

    def _check_publication(self) -> None:
        # PostgreSQL 18 goes on without a publication that is missing, and so would lose its changes.
        name = pq.Escaping(self._connection).escape_literal(self.publication.encode())
        result = self._connection.exec_(
            b"SELECT 1 FROM pg_catalog.pg_publication WHERE pubname::pg_catalog.text = " + name
        )
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error(result, starting=True)
        if result.ntuples == 0:
            raise PublicationMissing(f"publication {self.publication} does not exist")

    def _notice(self, notice: pq.abc.PGresult) -> None:
        """Remember the warning of PostgreSQL 18 that it skips a publication; exceptions are lost in here.

        One that a standby is waited for comes every second or so, and is no end: infra.postgres.standbys asks for that.
        """
        field = notice.error_field
        if (
            field(pq.DiagnosticField.SQLSTATE) == b"55000"
            and field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) == b"WARNING"
            and field(pq.DiagnosticField.SOURCE_FUNCTION) != _STANDBYS
        ):
            self._skipped_publication = f"slot {self.slot}: {_line(notice)}"

    def _unfinished(self) -> bool:
        """Throw away what still comes; return whether the server has not said its farewell yet."""
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
        """Return the error for a result, by its SQLSTATE."""
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        line = _line(result)
        where = f"slot {self.slot}: {line}"
        if state == "55006":  # object_in_use; the pid is the last number in every language
            found = re.search(r"(\d+)\D*$", line)
            return SlotInUse(self.slot, int(found[1]) if found else None)
        # A server that shuts down waits for no standby, and makes an error of that.
        standby = result.error_field(pq.DiagnosticField.SOURCE_FUNCTION) == _STANDBYS
        if state in _PASSING or state.startswith("08") or standby:
            return self._gone(line)
        if state == "42704":  # undefined_object
            return SlotMissing(where) if starting else PublicationMissing(where)
        if state in {"42501", "28000", "28P01"}:
            remedy = "give the role LOGIN and REPLICATION, and pg_hba.conf a line"
        elif state == "58P01" or (starting and self._is_lost()):  # undefined_file: a segment was removed
            return SlotLost(where)
        else:
            remedy = "put right what the server names"
        return HeadraceError(where, remedy=remedy)

    def _is_lost(self) -> bool:
        """Ask, since object_not_in_prerequisite_state says a dozen things beside a slot's loss."""
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


def _connect(dsn: str) -> pq.abc.PGconn:
    connection = pq.PGconn.connect(dsn.encode())
    if connection.status != pq.ConnStatus.OK:
        line = connection.get_error_message()
        connection.finish()
        with translated(dsn):
            raise psycopg.OperationalError(line)
    return connection


def _line(result: pq.abc.PGresult) -> str:
    """Return the server's message and detail as one line."""
    fields = (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_DETAIL)
    texts = [text.decode(errors="replace") for text in map(result.error_field, fields) if text]
    return " ".join(" ".join(texts).split()) or " ".join(result.get_error_message().split())
