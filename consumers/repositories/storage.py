"""Where a repository lies: `<root>/<normalised name>/.git`, as gitserver keeps it, and where it is on its way.

Beside the repositories each root has a directory `.headrace`, on the same file system so that a rename is atomic:

    .headrace/coming/<hash>.<token>   a copy that is being made, worthless until it is renamed into its place
    .headrace/leaving/<hash>          an old copy that nobody can open any more, whole until all it has was carried over
    .headrace/gone/<hash>.<token>     what is being deleted, worthless
    .headrace/set-aside/<name>.<n>    what lay at a new home before the move, or an old copy that could not be carried
                                      over: an operator's to look at, never touched again

`<hash>` is of the name, so that what belongs to a name is found again by whoever goes on with it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from infra.settings.gitserver import GitserverSettings
from schemas.errors import HeadraceError, SettingsError

OWN: Final = ".headrace"
"""The directory in each root that is headrace's."""

_ADDRESS: Final = re.compile(r"[^/]+:")
_LONGEST: Final = 255
_SHOWN: Final = 200
_STALE_SECONDS: Final = 3600.0


class NotAPlace(HeadraceError):
    """Move it by hand, then `headrace parked retry rehash_moves`."""


class Misplaced(NotAPlace):
    """Move its directory to the node that readers are sent to, then `headrace parked retry rehash_moves`."""


@dataclass(frozen=True, slots=True)
class Root:
    """One node's root directory."""

    path: Path
    device: int = 0
    """What it was at the start, 0 where nobody looked: another one is another file system, or none."""

    @property
    def is_the_same(self) -> bool:
        """Whether it is there, and what it was."""
        try:
            return self.device in (0, self.path.stat().st_dev)
        except OSError:
            return False

    def place(self, name: str) -> Path:
        """Return where the repository with this normalised name lies.

        Raises NotAPlace when the name would lead out of the root, into headrace's own directory or into another
        repository, or when a symbolic link is in the way.
        """
        parts = name.split("/")
        for part in parts:
            if not part or part in (".", "..") or "\0" in part or part.lower() == ".git":
                raise NotAPlace("its name is not one that a directory can have")
            if len(os.fsencode(part)) > _LONGEST:
                raise NotAPlace("a part of its name is too long for a directory")
        if parts[0].lower() == OWN:
            raise NotAPlace(f"its name is that of the directory {OWN}, which headrace keeps for itself")
        place = self.path
        for part in (*parts, ".git"):
            place /= part
            if place.is_symlink():
                raise NotAPlace("a symbolic link is in the way to it")
        return place

    def coming(self, name: str) -> Path:
        """Return a new path for a copy under way; its directory is there."""
        return self._own("coming") / f"{_hash(name)}.{secrets.token_hex(6)}"

    def leaving(self, name: str) -> Path:
        """Return where an old copy waits for its deletion; its directory is there."""
        return self._own("leaving") / _hash(name)

    def gone(self, name: str) -> Path:
        """Return a new path for what is to be deleted; its directory is there."""
        return self._own("gone") / f"{_hash(name)}.{secrets.token_hex(6)}"

    def set_aside(self, name: str) -> Path:
        """Return where something is put that is not headrace's to delete: the same path until something lies there."""
        shown = quote(name, safe="")[:_SHOWN]
        paths = (self._own("set-aside") / f"{shown}.{_hash(name)[:8]}.{number}" for number in itertools.count(1))
        return next(path for path in paths if not os.path.lexists(path))

    def copy(self, name: str) -> Copy:
        """Return the copy that lies, or would lie, in the name's place; see `place`."""
        return Copy(self, name, self.place(name))

    def left(self, name: str) -> Copy:
        """Return the old copy that waits for its deletion."""
        return Copy(self, name, self.leaving(name))

    def worthless(self, name: str) -> list[Path]:
        """Return what members that died left of a name: copies half made, and what was half deleted."""
        return [path for kind in ("coming", "gone") for path in self._own(kind).glob(f"{_hash(name)}.*")]

    def lying_about(self) -> list[tuple[str, Path]]:
        """Return all that lies in headrace's own directories, each with the hash of the name that it belongs to."""
        found = [path for kind in ("coming", "leaving", "gone") for path in self._own(kind).iterdir()]
        return [(path.name.partition(".")[0], path) for path in found]

    def is_worth(self, path: Path) -> bool:
        """Return whether what lies about may be the only copy of something."""
        return path.parent == self._own("leaving")

    def put_back(self, name: str) -> None:
        """Let an old copy that was taken out of reach be where it was; nothing if there is none, or another one."""
        leaving = self.leaving(name)
        if leaving.exists():
            self.install(leaving, name)

    def install(self, made: Path, name: str, like: Path | None = None) -> bool:
        """Rename `made` into the name's place, atomically; return False when a repository lies there already.

        Directories that have to be made for that are `like` those above the other copy, in owner and mode.
        """
        for _ in range(10):
            place = self.place(name)
            self._make_parents(place, like)
            try:
                os.rename(made, place)
            except FileNotFoundError:
                # Somebody removed an empty parent between the two; a copy that has vanished itself is another matter.
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
        raise NotAPlace("its directory is removed again and again by somebody else")

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
        """Rename a repository out of its place, and remove the directories that are empty then."""
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
        # Its names cannot be listed by others; but git, which runs as the repository's owner, has to get through.
        for each in (path.parent, path):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o711)
                # Made by root, it is still for whoever owns the repositories to go on with.
                os.chown(each, *_changes(each.stat(), self.path.stat()))
        return path


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of the repository with this name, in its place or on its way, and the root that it lies in."""

    root: Root
    name: str
    path: Path

    @property
    def is_there(self) -> bool:
        """Whether there is a git repository."""
        return is_repository(self.path)

    def scratch(self) -> Path:
        """Return a new path on the copy's file system for what is worthless unless it is renamed."""
        return self.root.coming(self.name)


def roots_of(settings: GitserverSettings) -> Mapping[str, Root]:
    """Return node → its root. Raises SettingsError, naming the node, when one is none; see `root_of`."""
    return {node: root_of(settings, node) for node in settings.nodes}


def root_of(settings: GitserverSettings, node: str) -> Root:
    """Return a node's root. Raises SettingsError when repositories cannot be moved there."""
    given = settings.roots.get(node)
    if given is None:
        raise SettingsError(
            f"node {node} has no root", remedy=f'set gitserver.roots."{node}" to the directory of its repositories'
        )
    if _ADDRESS.match(given):
        raise SettingsError(
            f"the root of node {node} is an address, over which a copy can be neither put in its place nor removed",
            remedy="mount its repositories and give their directory",
        )
    path = Path(given)
    try:
        if path.is_dir():
            return Root(path.resolve(), path.stat().st_dev)
    except OSError as error:
        raise SettingsError(
            f"the root of node {node} cannot be reached by user {os.geteuid()}: {path}: {error.strerror}",
            remedy="run as the user that owns the repositories, or put right what is in the way",
        ) from error
    raise SettingsError(f"the root of node {node} is not there: {path}", remedy="mount it, or correct the path")


def is_repository(path: Path) -> bool:
    """Return whether there is a git repository, by what git itself looks for."""
    # HEAD may be a symbolic link to a branch that is packed, and so to no file.
    return os.path.lexists(path / "HEAD") and all((path / part).exists() for part in ("objects", "refs"))


def in_use(path: Path) -> bool:
    """Return whether a repository is written to (a lock, a push that is not accepted yet) or git is at work in it.

    Git's own processes are seen on this machine, on Linux, as far as this user may see them. What was written and is
    older than an hour was left by somebody who died.
    """
    since = time.time() - _STALE_SECONDS
    return any(_newer(found, since) for found in _written(path)) or any(True for _ in _working_in(path))


def _written(path: Path) -> Iterator[Path]:
    for pattern in ("*.lock", "refs/**/*.lock", "objects/tmp_objdir-*", "objects/incoming-*"):
        yield from path.glob(pattern)


def _working_in(path: Path) -> Iterator[str]:
    """Yield git's processes that are within a directory, or have a file of it open."""
    within = (str(path), f"{path}/")
    for process in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        # Processes end meanwhile, and others' may not be looked into.
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
    """Return the owner and group to set, -1 for what is right: only root may set what is wrong."""
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
    """Make what was made, renamed or removed in a directory outlast a loss of power."""
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _upwards(path: Path, root: Path) -> Iterator[Path]:
    """Yield `path` and the directories above it, up to the root and with it."""
    while True:
        yield path
        if path == root:
            return
        path = path.parent


def _hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()
