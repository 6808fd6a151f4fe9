"""Bytes that must wait, on disk: a directory of this process's own, and the files of transactions in it.

Nothing here is needed after a crash, since the server sends it all again; so nothing is synced, and what a dead
process left is removed by the next that starts. A directory is held by a lock on itself, which ends with its process
however that dies, and which tells the living from the dead across containers too, where process ids do not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from schemas.errors import HeadraceError

_NAME: Final = "headrace-spill-"
_HELD: Final = 64 * 1024
"""Bytes of a transaction that are kept in memory before they go to its file: many may be in progress at once."""

_BLOCK: Final = 1024 * 1024
"""Bytes that are read back at a time."""

_LENGTH: Final = struct.Struct("!I")
_XID: Final = struct.Struct("!xI")


class SpillFailed(HeadraceError):
    """Free some space, or set databases.<name>.spill_directory, then start again: nothing is lost."""


class SpillDirectory:
    """A directory of this process's own in `parent` (the system's temporary one by default), removed by `close`.

    Raises SpillFailed when there can be none.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._parent)
            self.path, self._lock = _held(self._parent)
        except OSError as error:
            raise SpillFailed(f"{self._parent} cannot hold large transactions: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def transaction(self, xid: int) -> Spill:
        """Return the empty spill of a transaction."""
        return Spill(self.path / str(xid), xid)

    def close(self) -> None:
        """Remove the directory with all that is in it; does nothing the second time."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


class Spill:
    """What one transaction in progress did, as raw messages in their order: the newest in memory, the rest in a file.

    Each message is one of a stream block: behind its type byte stands the (sub)transaction's id. The file is open only
    while something is written or read, since hundreds of transactions may be in progress.
    """

    def __init__(self, path: Path, xid: int) -> None:
        self.xid = xid
        self._path = path
        self._tail = bytearray()
        self._written = 0
        # Four bytes each, where a set's entries have sixty: a transaction may roll back a million savepoints.
        self._aborted = array("I")

    @property
    def size(self) -> int:
        """Bytes kept, in memory and on disk."""
        return self._written + len(self._tail)

    def add(self, message: bytes) -> None:
        """Keep one message. Raises SpillFailed when the disk takes no more."""
        self._tail += _LENGTH.pack(len(message))
        self._tail += message
        if len(self._tail) >= _HELD:
            self._write()

    def abort(self, subxid: int) -> None:
        """Leave out what the sub-transaction `subxid` did, once the messages are read."""
        self._aborted.append(subxid)

    def read(self) -> Iterator[list[bytes]]:
        """Yield the messages in their order, about a megabyte at a time, without those of aborted sub-transactions.

        A sub-transaction within an aborted one has an abort of its own from the server.
        """
        aborted = sorted(self._aborted)
        for block in self._blocks():
            yield [message for message in block if not _is_in(aborted, message)] if aborted else block

    def discard(self) -> None:
        """Forget everything; the file goes."""
        self._tail.clear()
        self._aborted = array("I")
        if self._written:
            self._written = 0
            self._path.unlink(missing_ok=True)

    def _blocks(self) -> Iterator[list[bytes]]:
        """Yield the messages, first those of the file."""
        rest = b""
        if self._written:
            with self._path.open("rb", buffering=0) as file:
                wanted = _BLOCK
                while data := file.read(wanted):
                    block, rest = _messages(rest + data)
                    if block:
                        yield block
                    # A message larger than a block is read in one piece, as soon as its length is known.
                    missing = _LENGTH.unpack_from(rest)[0] - len(rest) if len(rest) >= _LENGTH.size else 0
                    wanted = max(_BLOCK, missing + _LENGTH.size)
        block, rest = _messages(rest + self._tail)
        if rest:
            raise SpillFailed(f"{self._path.parent} lost bytes of transaction {self.xid}: something else writes there")
        if block:
            yield block

    def _write(self) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                while self._tail:  # a disk that fills up takes a part first
                    written = file.write(self._tail) or 0
                    self._written += written
                    del self._tail[:written]
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            problem = "has no space left" if full else f"cannot be written ({error.strerror or error})"
            raise SpillFailed(
                f"{self._path.parent} {problem}: transaction {self.xid} takes more than {self.size} bytes"
            ) from error


def _messages(data: bytes | bytearray) -> tuple[list[bytes], bytes]:
    """Return the whole messages in `data`, and the rest of it."""
    found: list[bytes] = []
    view = memoryview(data)
    end = len(view)
    position = 0
    unpack = _LENGTH.unpack_from
    while position + 4 <= end:
        start = position + 4
        stop = start + unpack(view, position)[0]
        if stop > end:
            break
        found.append(bytes(view[start:stop]))
        position = stop
    return found, bytes(view[position:])


def _is_in(aborted: list[int], message: bytes) -> bool:
    if message[:1] == b"O":  # an origin is of the whole transaction
        return False
    (xid,) = _XID.unpack_from(message)
    place = bisect_left(aborted, xid)
    return place < len(aborted) and aborted[place] == xid


def _held(parent: Path) -> tuple[Path, int]:
    """Make a directory and lock it; another process may have taken it for an abandoned one in between."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_NAME, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(path.stat(), os.fstat(lock)):
                    return path, lock
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories whose processes are dead; others' that may not be opened are theirs to remove."""
    for path in parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
