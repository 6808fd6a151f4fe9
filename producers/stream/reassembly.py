"""Reassembles transactions that the server streams in progress, and returns messages in commit order.

Blocks of a transaction in progress are stored undecoded (`producers.stream.spill`). When it has committed they are
decoded in place of its Stream Commit, as an ordinary transaction with Begin, changes and Commit. So later stages need
not handle streaming, a transaction's changes have the same ordinals either way, and relations described in a block
first apply only to its own transaction.

Source: PostgreSQL 18, "Streaming of Large Transactions for Logical Decoding" and "Logical Streaming Replication
Protocol".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Protocol, Self

from producers.stream.frames import Received
from producers.stream.messages import Begin, Commit, Message, StreamAbort, StreamCommit, StreamStart, StreamStop
from producers.stream.pgoutput import Decoder
from producers.stream.spill import Spill, SpillDirectory
from schemas.errors import Malformed

_STREAM_START: Final = struct.Struct("!cIB")
_CONTROL: Final = frozenset(b"SEcA")
"""Stream Start, Stream Stop, Stream Commit, Stream Abort."""

_STOP: Final = ord("E")


class Frames(Protocol):
    """The source of frames: producers.stream.connection.ReplicationStream."""

    def read(self, max_messages: int, timeout: float) -> list[Received]: ...


class Incoming:
    """Reads `frames` and returns messages, complete transactions in commit order.

    Memory is bounded for any size of transaction: it is read back in parts of about a megabyte.
    """

    def __init__(self, frames: Frames, spills: SpillDirectory) -> None:
        self._frames = frames
        self._spills = spills
        self._decoder = Decoder()
        self._transactions: dict[int, Spill] = {}
        self._open: Spill | None = None
        self._replay: Iterator[list[Message]] | None = None
        self._pending: list[bytes] = []
        """Messages read that wait until a transaction before them is completely returned."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def kept(self) -> int:
        """Bytes stored for transactions in progress."""
        return sum(spill.size for spill in self._transactions.values())

    def read(self, limit: int, timeout: float) -> list[Message]:
        """Return the next messages of about `limit` frames; wait up to `timeout` seconds for the first.

        An empty list means that it timed out or received only parts of transactions in progress. Must be called as
        often as ReplicationStream.read; raises its errors, SpillFailed and Malformed.
        """
        messages: list[Message] = []
        if self._replay is None and not self._pending:
            self._pending = [each for each in self._frames.read(limit, timeout) if type(each) is bytes]
        else:
            # Read no frames meanwhile, but answer the server.
            self._frames.read(0, 0)
        if self._replay is None:
            self._take(messages)
        if self._replay is not None and not messages:
            messages = next(self._replay, [])
            if not messages:
                self._replay = None
                return self.read(limit, 0 if self._pending else timeout)
        return messages

    def close(self) -> None:
        """Forget the transactions in progress: the server sends them again to the next reader."""
        for spill in self._transactions.values():
            spill.discard()
        self._transactions.clear()

    def _take(self, messages: list[Message]) -> None:
        """Decode the messages read, up to a commit whose transaction has to be read back."""
        pending, place = self._pending, 0
        while place < len(pending) and self._replay is None:
            data = pending[place]
            if data[0] in _CONTROL and (self._open is None or data[0] == _STOP):
                self._control(data)
                place += 1
            elif self._open is not None:
                self._open.add(data)
                place += 1
            else:
                message, place = self._decoder.read(pending, place)
                messages.append(message)
        self._pending = pending[place:]

    def _control(self, data: bytes) -> None:
        match self._decoder.decode(data):
            case StreamStart(xid, first):
                if first:
                    self._forget(xid)
                    self._transactions[xid] = self._spills.transaction(xid)
                self._open = self._known(xid)
            case StreamStop():
                self._open = None
            case StreamAbort(xid, subxid):
                # The server also sends aborts of transactions that it never streamed or already aborted.
                if xid == subxid:
                    self._forget(xid)
                elif xid in self._transactions:
                    self._transactions[xid].abort(subxid)
            case StreamCommit() as commit:
                self._replay = self._committed(commit, data)

    def _known(self, xid: int) -> Spill:
        try:
            return self._transactions[xid]
        except KeyError:
            raise Malformed(f"the stream continues transaction {xid}, whose start it did not send") from None

    def _forget(self, xid: int) -> None:
        if (spill := self._transactions.pop(xid, None)) is not None:
            spill.discard()

    def _committed(self, commit: StreamCommit, data: bytes) -> Iterator[list[Message]]:
        """Yield the messages of a committed transaction in non-empty parts."""
        spill = self._known(commit.xid)
        decode = self._decoder.decode
        yield [Begin(commit.commit_lsn, commit.commit_ms, commit.xid)]
        # A single block: its relations apply only to the transaction until the commit is decoded.
        decode(_STREAM_START.pack(b"S", commit.xid, 1))
        for block in spill.read():
            if messages := self._decoder.read_all(block):
                yield messages
        decode(b"E")
        decode(data)
        self._forget(commit.xid)
        yield [Commit(commit.commit_lsn, commit.end_lsn, commit.commit_ms)]
