"""Keeps a comparison's marks and progress on disk: the next process continues where one was killed.

The directory belongs to one comparison at a time, by a lock that ends with the process. It has hashes, offsets, and the
last key of each range of the table, and is readable by its user alone. Nothing is synced: after a restart of the
machine a comparison starts from scratch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from consumers.compare import marks
from schemas.errors import HeadraceError

_NAME: Final = "headrace-verify-"
_BUFFERED: Final = 4 << 20
"""Bytes of marks in memory, of all parts together, before they are written."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_KEPT_SECONDS: Final = 24 * 3600
"""After so long a comparison starts from scratch, and a directory that no process continued is removed."""


class WorkFailed(HeadraceError):
    """Free some space, or set databases.<name>.spill_directory, then start again: it continues where it was."""


class WorkDirectory:
    """The directory of a comparison, for `names` that identify it, in `parent` (default: that of temporary files).

    If another process has it, or another user has made it, the directory is a private one, which no other process will
    find. Raises WorkFailed if it cannot be created.
    """

    def __init__(self, parent: Path | None, names: Sequence[str]) -> None:
        place = parent or Path(tempfile.gettempdir())
        text = "\0".join((str(os.getuid()), *names))
        self._lock = -1
        with _on_disk(place):
            place.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(place)
            self.path = place / f"{_NAME}{sha256(text.encode()).hexdigest()[:24]}"
            if not self._take():
                self.path = Path(tempfile.mkdtemp(prefix=_NAME, dir=place))
                self._take()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take(self) -> bool:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        try:
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return False
        found = os.fstat(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
            if ours and os.path.samestat(self.path.stat(), found):
                self._lock = lock
                return True
        except OSError:
            pass
        os.close(lock)
        return False

    def begin(self, identity: Mapping[str, str]) -> dict[str, Any] | None:
        """Return what an earlier process saved as `plan` for the same `identity`; without one, empty the directory."""
        plan = self.load("plan")
        if plan is not None and plan.get("identity") == _here(identity) and time.time() < plan["began"] + _KEPT_SECONDS:
            return plan
        self.empty()
        return None

    def plan(self, identity: Mapping[str, str], **plan: object) -> dict[str, Any]:
        """Save what a later process needs to continue, and return it."""
        whole = {"identity": _here(identity), "began": time.time(), **plan}
        self.save("plan", whole)
        return whole

    def save(self, name: str, value: Mapping[str, object]) -> None:
        """Replace what is saved by a name."""
        with _on_disk(self.path):
            new = self.path / f"{name}.new"
            new.write_text(json.dumps(value), encoding="utf-8")
            new.replace(self.path / name)

    def load(self, name: str) -> dict[str, Any] | None:
        """Return what was saved by a name, None if nothing."""
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def append(self, name: str, values: Sequence[object]) -> None:
        """Append values to a file, a line each."""
        with _on_disk(self.path), (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(value)}\n" for value in values)

    def lines(self, name: str, count: int) -> list[Any]:
        """Return the first `count` values of a file, and cut off the others, which belong to no saved progress."""
        path = self.path / name
        if not path.exists() and not count:
            return []
        with _on_disk(self.path), path.open("r+", encoding="utf-8") as file:
            found = [json.loads(file.readline()) for _ in range(count)]
            file.truncate(file.tell())
        return found

    def empty(self) -> None:
        """Remove all files: the comparison is over, or starts from scratch."""
        for path in self.path.iterdir():
            path.unlink()

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)


class MarkFiles:
    """The marks of one side in `parts` files, a power of two, each with all marks of its keys in the order of `add`.

    `lengths` are those of `flush` that belong to the saved progress: what was written after it is cut off.
    """

    def __init__(self, directory: Path, side: str, parts: int, lengths: Sequence[int] | None = None) -> None:
        self._directory = directory
        self._side = side
        self._buffers = [bytearray() for _ in range(parts)]
        self._lengths = list(lengths) if lengths else [0] * parts
        self._buffered = 0
        with _on_disk(directory):
            for part, length in enumerate(self._lengths):
                if self._path(part).exists() or length:
                    os.truncate(self._path(part), length)

    def add(self, made: bytes) -> None:
        """Add marks. Raises WorkFailed if the disk is full."""
        marks.scatter(made, self._buffers)
        self._buffered += len(made)
        if self._buffered >= _BUFFERED:
            self.flush()

    def flush(self) -> list[int]:
        """Write what is in memory; return the length of each file."""
        with _on_disk(self._directory):
            for part, buffer in enumerate(self._buffers):
                if buffer:
                    with self._path(part).open("ab") as file:
                        file.write(buffer)
                    self._lengths[part] += len(buffer)
                    self._buffers[part] = bytearray()
        self._buffered = 0
        return list(self._lengths)

    def read(self, part: int) -> bytes:
        """Return the marks of a part; everything must have been flushed."""
        if not self._lengths[part]:
            return b""
        with _on_disk(self._directory):
            found = self._path(part).read_bytes()
        if len(found) != self._lengths[part]:
            raise WorkFailed(f"{self._directory} lost marks: another process writes there")
        return found

    def _path(self, part: int) -> Path:
        return self._directory / f"{self._side}-{part}"


def _here(identity: Mapping[str, str]) -> dict[str, str]:
    """Return the identity with what else the files depend on; they are worth nothing on another run of the machine."""
    try:
        boot = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        boot = f"unknown to process {os.getpid()}"
    return {**identity, "hashes": marks.HASHES, "boot": boot}


@contextlib.contextmanager
def _on_disk(place: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise WorkFailed(f"{place} cannot hold the comparison: {error.strerror or error}") from error


def _remove_abandoned(parent: Path) -> None:
    """Remove what no process has continued for long; skip what is another user's."""
    for path in parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_mtime + _KEPT_SECONDS < time.time():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
