"""The repositories in a directory that is a git storage, found as Gitaly finds them.

The rules are those of the walk behind Gitaly's `WalkRepos`: a directory with `objects`, `refs` and `HEAD` in it is
a repository, and nothing below it is looked at; `+gitaly`, directly in the storage, holds Gitaly's temporary files.
Names are bytes here, since a file system does not promise that they are text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from schemas.errors import Unavailable

_MARKS: Final = frozenset({"objects", "refs", "HEAD"})
_GITALYS_OWN: Final = "+gitaly"
"""Gitaly's directory of temporary files, at the top of a storage: what looks like a repository there is none."""
_MARKED: Final = ".gitaly-metadata"
"""The file that Gitaly writes into a storage at its start."""

_VANISHED: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""What opening a directory fails with that was there a moment ago: it is gone, or something else has its name.

Opened without following symbolic links, one that took a directory's place gives ENOTDIR or ELOOP.
"""

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class StorageUnreadable(Unavailable):
    """Check that the storage is mounted and that this user may read it, then walk again."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository by its path from the storage; `modified` is its directory's time, in microseconds since 1970."""

    path: bytes
    modified: int


@dataclass(frozen=True, slots=True)
class Unread:
    """A directory that could not be read, and the system's reason: what is below it is not known."""

    path: bytes
    reason: str


Found = Repository | Unread

ScanDirectory = Callable[[int], AbstractContextManager[Iterable["os.DirEntry[str]"]]]


def is_gitalys_own(path: bytes) -> bool:
    """Return whether a path, from the storage, is among Gitaly's temporary files."""
    return path.split(b"/", 1)[0] == _GITALYS_OWN.encode()


def walk_directory(root: str, scan: ScanDirectory = os.scandir) -> Generator[Found, None, None]:
    """Yield what is in the storage, in lexicographic order of the paths' components.

    That is the order of the names' bytes in each directory, with all below a directory before its next neighbour.
    A symbolic link is never followed, not even one that takes a directory's place while it is opened, so that the
    walk neither loops nor leaves the storage (`root` itself may be one). A directory that vanishes meanwhile is no
    error. Memory holds the names of the directories on the way down, and an open file for each of them.

    `scan` reads an open directory, as os.scandir does. Raises StorageUnreadable when `root` is no readable directory,
    stops being this one, or has no repository and no mark of Gitaly's, as an empty mount point.
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
        # Where the storage was unmounted or replaced, all that was left in it seemed to vanish.
        with _storage(root):
            if not os.path.samestat(os.stat(root), os.stat(top.descriptor)):
                raise StorageUnreadable(f"storage {root} was replaced while it was walked")
            if empty and not _is_marked(top.descriptor):
                raise StorageUnreadable(
                    f"storage {root} has no repository and no {_MARKED}: nothing says that it is a storage",
                    remedy="check that it is mounted; Gitaly writes the file when it starts",
                )
    finally:
        for level in levels:
            os.close(level.descriptor)


@dataclass(slots=True)
class _Level:
    """A directory on the way down: `left` are those in it that are still to be looked at, the next one last."""

    path: bytes
    descriptor: int
    left: list[str] = field(default_factory=list)


def _step(level: _Level, levels: list[_Level], scan: ScanDirectory) -> Iterator[Found]:
    """Look at the next directory in `level`; unless it is a repository it becomes the level to go on with."""
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
    """Blame the storage as a whole for what the system refuses inside."""
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
    """Return the names of the directories in one, backwards; None when it is a repository."""
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
