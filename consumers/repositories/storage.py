"""The places of a repository: `<root>/<normalised name>/.git`, as gitserver keeps it, and those during its move.

Next to the repositories each root has a directory `.headrace`, on the same file system so that a rename is atomic:

    .headrace/coming/<hash>.<token>   an unfinished copy, worthless until it is renamed into its place
    .headrace/leaving/<hash>          an old copy that can no longer be opened, kept until it was carried over
    .headrace/gone/<hash>.<token>     a directory that is being deleted, worthless
    .headrace/set-aside/<name>.<n>    a directory that was at a new home before the move, or an old copy that could not
                                      be carried over: left to an operator, never touched again

`<hash>` is of the name, so that another consumer that continues the move finds the directories.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from infra.settings.gitserver import GitserverSettings
from schemas.errors import HeadraceError, SettingsError
from schemas.lazy_dataclass import dataclass

OWN: Final = ".headrace"
"""headrace's own directory in each root."""

_ADDRESS: Final = re.compile(r"[^/]+:")
_LONGEST: Final = 255
_SHOWN: Final = 200
_STALE_SECONDS: Final = 3600.0


class NotAPlace(HeadraceError):
    """Move it by hand, then `headrace dead-letters retry rehash_moves`."""


class Misplaced(NotAPlace):
    """Move its directory to the node that readers are sent to, then `headrace dead-letters retry rehash_moves`."""


@dataclass(frozen=True)
class Root:
    """One node's root directory."""

    path: Path
    device: int = 0
    """The directory's number at the start, 0 if it was not read: with another number it is another file system."""

    @property
    def is_the_same(self) -> bool:
        """Whether the directory exists and is the same as at the start."""
        try:
            return self.device in (0, self.path.stat().st_dev)
        except OSError:
            return False

    def place(self, name: str) -> Path:
        """Return the path of the repository with this normalised name.

        Raises NotAPlace if the name leads out of the root, into headrace's own directory or into another repository,
        or through a symbolic link.
        """
        parts = name.split("/")
        for part in parts:
            if not part or part in (".", "..") or "\0" in part or part.lower() == ".git":
                raise NotAPlace("its name is not a valid path")
            if len(os.fsencode(part)) > _LONGEST:
                raise NotAPlace("a part of its name is too long for a directory")
        if parts[0].lower() == OWN:
            raise NotAPlace(f"its name is in the directory {OWN}, which is reserved for headrace")
        place = self.path
        for part in (*parts, ".git"):
            place /= part
            if place.is_symlink():
                raise NotAPlace("its path has a symbolic link")
        return place

    def coming(self, name: str) -> Path:
        """Return a new path for an unfinished copy, in an existing directory."""
        return self._own("coming") / f"{_hash(name)}.{secrets.token_hex(6)}"

    def leaving(self, name: str) -> Path:
        """Return the path of an old copy that waits for its deletion, in an existing directory."""
        return self._own("leaving") / _hash(name)

    def gone(self, name: str) -> Path:
        """Return a new path for a directory to be deleted, in an existing directory."""
        return self._own("gone") / f"{_hash(name)}.{secrets.token_hex(6)}"

    def set_aside(self, name: str) -> Path:
        """Return the path to set a directory aside that headrace must not delete; the same path until it is taken."""
        shown = quote(name, safe="")[:_SHOWN]
        paths = (self._own("set-aside") / f"{shown}.{_hash(name)[:8]}.{number}" for number in itertools.count(1))
        return next(path for path in paths if not os.path.lexists(path))

    def copy(self, name: str) -> Copy:
        """Return the copy that is, or would be, in the name's place; see `place`."""
        return Copy(self, name, self.place(name))

    def left(self, name: str) -> Copy:
        """Return the old copy that waits for its deletion."""
        return Copy(self, name, self.leaving(name))

    def worthless(self, name: str) -> list[Path]:
        """Return a name's leftovers of consumers that died: unfinished copies and deletions."""
        return [path for kind in ("coming", "gone") for path in self._own(kind).glob(f"{_hash(name)}.*")]

    def lying_about(self) -> list[tuple[str, Path]]:
        """Return everything in headrace's own directories, each with the hash of its name."""
        found = [path for kind in ("coming", "leaving", "gone") for path in self._own(kind).iterdir()]
        return [(path.name.partition(".")[0], path) for path in found]

    def is_worth(self, path: Path) -> bool:
        """Return whether a leftover may be the only copy of a repository."""
        return path.parent == self._own("leaving")

    def put_back(self, name: str) -> None:
        """Put an old copy back that was taken out of reach, if it exists and its place is free."""
        leaving = self.leaving(name)
        if leaving.exists():
            self.install(leaving, name)

    def install(self, made: Path, name: str, like: Path | None = None) -> bool:
        """Rename `made` into the name's place, atomically; return False if a repository is there already.

        Directories that are created for it get the owner and mode of those above `like`, the other copy.
        """
        for _ in range(10):
            place = self.place(name)
            self._make_parents(place, like)
            try:
                os.rename(made, place)
            except FileNotFoundError:
                # Another process removed an empty parent meanwhile; if the copy itself is gone, it is an error.
                if not made.is_dir():
                    raise
                continue
            except OSError:
                if is_repository(place):
                    return False
                raise
            for parent in _upwards(place.parent, self.path):
                sync_directory(parent)
            return True
        raise NotAPlace("another process keeps removing its directory")

    def _make_parents(self, place: Path, like: Path | None) -> None:
        above = [parent for parent in _upwards(place.parent, self.path) if parent != self.path]
        for depth, parent in reversed(list(enumerate(above))):
            try:
                parent.mkdir()
            except FileExistsError:
                continue
            if like is not None:
                status = like.parents[depth].stat()
                os.chown(parent, *_changes(parent.stat(), status))
                parent.chmod(stat.S_IMODE(status.st_mode))

    def take_away(self, place: Path, to: Path) -> None:
        """Rename a repository out of its place, and remove directories that are then empty."""
        os.rename(place, to)
        sync_directory(to.parent)
        sync_directory(place.parent)
        self.prune(place)

    def prune(self, place: Path) -> None:
        """Remove the directories above `place` that are empty, up to the root."""
        for parent in _upwards(place.parent, self.path):
            if parent == self.path:
                break
            try:
                parent.rmdir()
            except OSError:
                break

    def _own(self, kind: str) -> Path:
        path = self.path / OWN / kind
        # Other users cannot list its names; but git, which runs as the repository's owner, has to traverse it.
        for each in (path.parent, path):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o711)
                # If root creates it, the repositories' owner must still be able to use it.
                os.chown(each, *_changes(each.stat(), self.path.stat()))
        return path


@dataclass(frozen=True)
class Copy:
    """One copy of the repository with this name, in its place or during its move, and its root."""

    root: Root
    name: str
    path: Path

    @property
    def is_there(self) -> bool:
        """Whether it is a git repository."""
        return is_repository(self.path)

    def scratch(self) -> Path:
        """Return a new path on the copy's file system for data that is worthless unless it is renamed."""
        return self.root.coming(self.name)


def roots_of(settings: GitserverSettings) -> Mapping[str, Root]:
    """Return node → its root. Raises SettingsError, with the node, if one is unusable; see `root_of`."""
    return {node: root_of(settings, node) for node in settings.nodes}


def root_of(settings: GitserverSettings, node: str) -> Root:
    """Return a node's root. Raises SettingsError if repositories cannot be moved there."""
    given = settings.roots.get(node)
    if given is None:
        raise SettingsError(
            f"node {node} has no root", remedy=f'set gitserver.roots."{node}" to the directory of its repositories'
        )
    if _ADDRESS.match(given):
        raise SettingsError(
            f"the root of node {node} is an address, but headrace needs a directory to rename and remove copies",
            remedy="mount its repositories and set the root to their directory",
        )
    path = Path(given)
    try:
        if path.is_dir():
            return Root(path.resolve(), path.stat().st_dev)
    except OSError as error:
        raise SettingsError(
            f"user {os.geteuid()} cannot access the root of node {node}: {path}: {error.strerror}",
            remedy="run as the user that owns the repositories, or fix the path's permissions",
        ) from error
    raise SettingsError(f"the root of node {node} does not exist: {path}", remedy="mount it, or correct the path")


def is_repository(path: Path) -> bool:
    """Return whether a path is a git repository, by git's own criteria."""
    # HEAD may be a symbolic link to a packed branch, which has no file.
    return os.path.lexists(path / "HEAD") and all((path / part).exists() for part in ("objects", "refs"))


def in_use(path: Path) -> bool:
    """Return whether a repository is being written to (a lock, a push not accepted yet) or a git process uses it.

    Git's processes are found on this machine only, on Linux, if this user may see them. Lock files older than an hour
    were left by a process that died.
    """
    since = time.time() - _STALE_SECONDS
    return any(_newer(found, since) for found in _written(path)) or any(True for _ in _working_in(path))


def _written(path: Path) -> Iterator[Path]:
    for pattern in ("*.lock", "refs/**/*.lock", "objects/tmp_objdir-*", "objects/incoming-*"):
        yield from path.glob(pattern)


def _working_in(path: Path) -> Iterator[str]:
    """Yield git's processes whose working directory or open files are within a directory."""
    within = (str(path), f"{path}/")
    for process in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        # Processes may end meanwhile, and those of other users may not be readable.
        with contextlib.suppress(OSError):
            if process.isdigit() and _is_git(process):
                links = [
                    f"/proc/{process}/cwd",
                    *(f"/proc/{process}/fd/{fd}" for fd in os.listdir(f"/proc/{process}/fd")),
                ]
                if any((found := os.readlink(link)) == within[0] or found.startswith(within[1]) for link in links):
                    yield process


def _is_git(process: str) -> bool:
    with open(f"/proc/{process}/comm", "rb") as file:
        return file.read(3) == b"git"


def _changes(now: os.stat_result, wanted: os.stat_result) -> tuple[int, int]:
    """Return the owner and group to set, -1 for those that are right: only root may change them."""
    return (
        -1 if now.st_uid == wanted.st_uid or os.geteuid() != 0 else wanted.st_uid,
        -1 if now.st_gid == wanted.st_gid or os.geteuid() != 0 else wanted.st_gid,
    )


def _newer(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime > since
    except OSError:
        return False


def sync_directory(path: Path) -> None:
    """Sync a directory to disk: entries that were created, renamed or removed."""
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _upwards(path: Path, root: Path) -> Iterator[Path]:
    """Yield `path` and the directories above it, up to and including the root."""
    while True:
        yield path
        if path == root:
            return
        path = path.parent


def _hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()
