"""Lists the files in a repository's directory, and copies a file with all its attributes.

Git's objects and refs have their own modules (objects.py, refs.py); everything else is a file. Temporary files of
running processes, such as locks and objects that are not accepted yet, are left out.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumers.contract.external import Pace
from consumers.repositories.git import GitFailed, Steps
from consumers.repositories.storage import NotAPlace

_WORK: Final = re.compile(
    r"""[^/]*\.lock | gc\.pid | headrace-moving(\.new)?
      | (refs|logs|reftable|worktrees|objects/info|objects/pack)/(.*/)?[^/]*\.lock
      | objects/(tmp_|incoming-|maintenance\.lock)[^/]* | objects/[^/]*/(tmp_|\.tmp-)[^/]*""",
    re.VERBOSE | re.DOTALL,
)
_GITS: Final = re.compile(r"(objects|refs|reftable)(/.*)?|packed-refs|HEAD", re.DOTALL)
_BLOCK: Final = 1 << 20
_BLOCKS_AT_ONCE: Final = 16
_ENTRIES_AT_ONCE: Final = 500
TICK_SECONDS: Final = 0.02
"""The tick of a file system's clock: a second write within one tick leaves no trace."""
_TRIES: Final = 5
_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


class Changing(GitFailed):
    """The file keeps changing; the move is tried again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or symbolic link, by which a change is detected. A directory has neither size nor time."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: str


def entry(path: Path) -> Entry:
    """Return the entry at a path. Raises NotAPlace if it is neither file, directory nor link, and OSError."""
    status = path.lstat()
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise NotAPlace(f"{path.name} is not a file, directory or link: remove it")
    return Entry(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_size if kind == "file" else 0,
        status.st_mtime_ns if kind == "file" else 0,
        os.readlink(path) if kind == "link" else "",
    )


def is_gits(relative: str) -> bool:
    """Return whether a path within a repository is one of git's objects or refs."""
    return _GITS.fullmatch(relative) is not None


def walk(top: Path, *, files_only: bool) -> Steps[dict[str, Entry]]:
    """Return path → entry, directories before their content; with `files_only` without git's objects and refs.

    Files that vanish meanwhile are left out. Raises NotAPlace for a file that cannot be moved.
    """
    found: dict[str, Entry] = {}
    for number, (relative, path) in enumerate(_walked(top, "", files_only)):
        try:
            found[relative] = each = entry(path)
        except FileNotFoundError:
            continue
        if each.kind == "link":
            _refuse_link(top, relative, each.link)
        if number % _ENTRIES_AT_ONCE == 0:
            yield Pace.BUSY
    return found


def _walked(top: Path, relative: str, files_only: bool) -> Iterator[tuple[str, Path]]:
    try:
        listed = sorted(
            os.scandir(top / relative), key=lambda each: _turn(each.name) if not relative else (0, each.name)
        )
    except FileNotFoundError:
        return
    for each in listed:
        path = f"{relative}/{each.name}" if relative else each.name
        if _WORK.fullmatch(path) or (files_only and is_gits(path)):
            continue
        yield path, top / path
        if each.is_dir(follow_symlinks=False):
            yield from _walked(top, path, files_only)


def _turn(name: str) -> tuple[int, str]:
    """Return the sort key of a path: a loose ref may become a packed one meanwhile, and needs its objects."""
    return ({"refs": 0, "reftable": 1, "packed-refs": 2, "objects": 4}.get(name, 3), name)


def _refuse_link(top: Path, relative: str, link: str) -> None:
    if os.path.isabs(link):
        if Path(link).is_relative_to(top) or Path(os.path.realpath(link)).is_relative_to(os.path.realpath(top)):
            raise NotAPlace(f"the symbolic link {relative} points to the old place: make it relative")
    elif os.path.normpath(os.path.join(os.path.dirname(relative), link)).startswith(".."):
        raise NotAPlace(f"the symbolic link {relative} points out of the repository: make it absolute")


def copy_file(source: Path, target: Path, seconds: float) -> Steps[Entry]:
    """Copy a file or link to an unused path, with mode, owner, times and attributes; return the entry copied.

    Raises Changing if the file keeps changing, FileNotFoundError if it is gone, and GitFailed if the copy cannot have
    one of its attributes.
    """
    deadline = time.monotonic() + seconds
    for _ in range(_TRIES):
        before = entry(source)
        if before.kind == "link":
            os.symlink(before.link, target)
            dress(source, target)
            return before
        while 0 <= time.time() - before.mtime_ns / 1e9 < TICK_SECONDS:
            time.sleep(TICK_SECONDS / 4)
        try:
            yield from _copy_content(source, target, deadline)
            dress(source, target)
            if entry(source) == before == entry(target):
                return before
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        target.unlink()
    raise Changing(f"{source.name} keeps changing")


def _copy_content(source: Path, target: Path, deadline: float) -> Steps[None]:
    made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(source, "rb", buffering=0) as reading, open(made, "wb", buffering=0) as writing:
        blocks = 0
        while block := reading.read(_BLOCK):
            rest = memoryview(block)
            while rest:
                rest = rest[writing.write(rest) :]
            blocks += 1
            if blocks % _BLOCKS_AT_ONCE == 0:
                if time.monotonic() > deadline:
                    raise GitFailed("the copy took longer than clone_seconds")
                yield Pace.BUSY


def dress(source: Path, target: Path) -> None:
    """Give a copy the owner, attributes, mode and times of the original.

    Raises GitFailed if that is not possible: its owner could not use the copy.
    """
    wanted, now = os.lstat(source), os.lstat(target)
    is_link = stat.S_ISLNK(wanted.st_mode)
    try:
        if (wanted.st_uid, wanted.st_gid) != (now.st_uid, now.st_gid):
            os.chown(target, wanted.st_uid, wanted.st_gid, follow_symlinks=False)
        if not is_link:
            _copy_attributes(source, target)
            os.chmod(target, stat.S_IMODE(wanted.st_mode))
    except PermissionError as error:
        raise GitFailed(
            f"{source.name} has an owner, group or attributes that {_user()} may not set on a copy:"
            " run as root, or as the user that owns the repositories"
        ) from error
    if not stat.S_ISDIR(wanted.st_mode):
        os.utime(target, ns=(wanted.st_atime_ns, wanted.st_mtime_ns), follow_symlinks=False)


def _copy_attributes(source: Path, target: Path) -> None:
    """Copy extended attributes, including ACLs; a security module's attributes are left to the target's policy."""
    if sys.platform != "linux":
        return
    try:
        names = [name for name in os.listxattr(source) if not name.startswith("security.")]
    except OSError:
        return
    for name in names:
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            raise GitFailed(f"the new home's file system cannot store attribute {name} of {source.name}") from error


def _user() -> str:
    return f"user {os.geteuid()}"
