"""Finds the repositories in a git storage's directory by Gitaly's rules.

The rules are those of Gitaly's `WalkRepos`: a directory that contains `objects`, `refs` and `HEAD` is a repository, and
is not descended into; `+gitaly`, at the top of the storage, holds Gitaly's temporary files. Names are bytes, since a
file system does not guarantee that they are text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field
from typing import Final

from schemas.errors import Unavailable
from schemas.lazy_dataclass import dataclass

_MARKS: Final = frozenset({"objects", "refs", "HEAD"})
_GITALYS_OWN: Final = "+gitaly"
"""Gitaly's directory of temporary files, at the top of a storage; repositories in it are ignored."""
_MARKED: Final = ".gitaly-metadata"
"""The file that Gitaly writes into a storage at its start."""

_VANISHED: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""Errors of opening a directory that existed a moment ago: it is gone, or was replaced.

A symbolic link that replaced the directory gives ENOTDIR or ELOOP, since links are not followed.
"""

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class StorageUnreadable(Unavailable):
    """Check that the storage is mounted and that this user may read it, then walk again."""


@dataclass(frozen=True)
class Repository:
    """A repository, by its path in the storage; `modified` is its directory's mtime, in microseconds since 1970."""

    path: bytes
    modified: int


@dataclass(frozen=True)
class Unread:
    """A directory that could not be read, and the system's reason; its contents are unknown."""

    path: bytes
    reason: str


Found = Repository | Unread

ScanDirectory = Callable[[int], AbstractContextManager[Iterable["os.DirEntry[str]"]]]


def is_gitalys_own(path: bytes) -> bool:
    """Return whether a path in the storage is among Gitaly's temporary files."""
    return path.split(b"/", 1)[0] == _GITALYS_OWN.encode()


def walk_directory(root: str, scan: ScanDirectory = os.scandir) -> Generator[Found, None, None]:
    """Yield the repositories in the storage, in lexicographic order of the paths' components.

    Names in a directory are ordered by their bytes, and everything below a directory comes before its next sibling.
    Symbolic links are never followed, not even one that replaces a directory while it is opened, so that the walk
    neither loops nor leaves the storage (`root` itself may be one). A directory that vanishes meanwhile is not an
    error. Memory holds the names in the directories on the current path, and an open file for each of them.

    `scan` reads an open directory, as os.scandir does. Raises StorageUnreadable when `root` is not a readable
    directory, is replaced, or has neither a repository nor Gitaly's marker file, as an empty mount point.
    """
    levels: list[_Level] = []
    empty = True
    try:
        with _storage(root):
            top = _Level(b"", os.open(root, _FLAGS))
            levels.append(top)
            names = _directories(top.descriptor, scan)
        if names is None:
            raise StorageUnreadable(
                f"storage {root} is itself a repository", remedy="set the path to the directory above the repositories"
            )
        top.left = [name for name in names if name != _GITALYS_OWN]
        while True:
            level = levels[-1]
            if level.left:
                for found in _step(level, levels, scan):
                    empty = False
                    yield found
            elif level is top:
                break
            else:
                os.close(levels.pop().descriptor)
        # If the storage was unmounted or replaced, the rest of it seemed to vanish.
        with _storage(root):
            if not os.path.samestat(os.stat(root), os.stat(top.descriptor)):
                raise StorageUnreadable(f"storage {root} was replaced while it was walked")
            if empty and not _is_marked(top.descriptor):
                raise StorageUnreadable(
                    f"storage {root} has neither a repository nor {_MARKED}: it may not be a storage",
                    remedy="check that it is mounted; Gitaly writes the file when it starts",
                )
    finally:
        for level in levels:
            os.close(level.descriptor)


@dataclass()
class _Level:
    """A directory on the current path; `left` are its directories still to be walked, the next one last."""

    path: bytes
    descriptor: int
    left: list[str] = field(default_factory=list)


def _step(level: _Level, levels: list[_Level], scan: ScanDirectory) -> Iterator[Found]:
    """Open the next directory in `level`; unless it is a repository it becomes the current level."""
    name = level.left.pop()
    path = level.path + os.fsencode(name)
    try:
        descriptor = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=level.descriptor)
        below = _Level(path + b"/", descriptor)
        levels.append(below)
        found = _directories(descriptor, scan)
        if found is not None:
            below.left = found
            return
        modified = os.stat(descriptor).st_mtime_ns // 1000
    except OSError as error:
        if error.errno not in _VANISHED:
            yield Unread(path, error.strerror or type(error).__name__)
        return
    yield Repository(path, modified)


@contextmanager
def _storage(root: str) -> Iterator[None]:
    """Translate OSError into StorageUnreadable."""
    try:
        yield
    except OSError as error:
        raise StorageUnreadable(f"storage {root} cannot be read: {error.strerror}") from error


def _is_marked(descriptor: int) -> bool:
    try:
        os.stat(_MARKED, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    return True


def _directories(descriptor: int, scan: ScanDirectory) -> list[str] | None:
    """Return the names of the directories in a directory, in reverse order; None when it is a repository."""
    names: list[str] = []
    marks = 0
    with scan(descriptor) as entries:
        for entry in entries:
            marks += entry.name in _MARKS
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name)
    if marks == len(_MARKS):
        return None
    names.sort(key=os.fsencode, reverse=True)
    return names
