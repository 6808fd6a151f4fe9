"""Stores transactions in progress on disk, in a private directory of this process.

After a crash the server sends everything again, so nothing is synced, and the next process removes the directories of
dead ones. A process locks its directory; the lock ends with the process, and works across containers, where process ids
do not.
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
"""Bytes of a transaction buffered in memory before they are written to its file: many may be in progress at once."""

_BLOCK: Final = 1024 * 1024
"""Bytes that are read back at a time."""

_LENGTH: Final = struct.Struct("!I")
_XID: Final = struct.Struct("!xI")


class SpillFailed(HeadraceError):
    """Free some space, or set databases.<name>.spill_directory, then start again: nothing is lost."""


class SpillDirectory:
    """A private directory in `parent` (by default the system's temporary directory), removed by `close`.

    Raises SpillFailed if it cannot be created.
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
        """Remove the directory with its contents; idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


class Spill:
    """The raw messages of one transaction in progress, in order: the newest in memory, the rest in a file.

    Each message is from a stream block: its type byte is followed by the (sub)transaction's id. The file is open only
    during reads and writes, since hundreds of transactions may be in progress.
    """

    def __init__(self, path: Path, xid: int) -> None:
        self.xid = xid
        self._path = path
        self._tail = bytearray()
        self._written = 0
        # Four bytes each, compared with sixty in a set: a transaction may roll back a million savepoints.
        self._aborted = array("I")

    @property
    def size(self) -> int:
        """Bytes kept, in memory and on disk."""
        return self._written + len(self._tail)

    def add(self, message: bytes) -> None:
        """Store one message. Raises SpillFailed if the disk is full or unwritable."""
        self._tail += _LENGTH.pack(len(message))
        self._tail += message
        if len(self._tail) >= _HELD:
            self._write()

    def abort(self, subxid: int) -> None:
        """Omit the messages of subtransaction `subxid` from reads."""
        self._aborted.append(subxid)

    def read(self) -> Iterator[list[bytes]]:
        """Yield the messages in order, about a megabyte at a time, without those of aborted subtransactions.

        The server sends a separate abort for each subtransaction nested in an aborted one.
        """
        aborted = sorted(self._aborted)
        for block in self._blocks():
            yield [message for message in block if not _is_in(aborted, message)] if aborted else block

    def discard(self) -> None:
        """Forget everything and remove the file."""
        self._tail.clear()
        self._aborted = array("I")
        if self._written:
            self._written = 0
            self._path.unlink(missing_ok=True)

    def _blocks(self) -> Iterator[list[bytes]]:
        """Yield the messages, those in the file first."""
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
            raise SpillFailed(f"{self._path.parent} lost bytes of transaction {self.xid}: another process writes there")
        if block:
            yield block

    def _write(self) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                while self._tail:  # a disk that fills up accepts a part first
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
    """Return the complete messages in `data`, and the rest."""
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
    if message[:1] == b"O":  # an origin belongs to the whole transaction
        return False
    (xid,) = _XID.unpack_from(message)
    place = bisect_left(aborted, xid)
    return place < len(aborted) and aborted[place] == xid


def _held(parent: Path) -> tuple[Path, int]:
    """Create and lock a directory; another process may remove it as abandoned in between."""
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
    """Remove the directories of dead processes; skip those that may not be opened."""
    for path in parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
