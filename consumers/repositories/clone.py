"""Copies a repository to another root, proves that the copy is complete, and syncs it before it becomes visible.

It copies the directory file by file instead of cloning: files that git would leave out are copied too, and the
repository's configuration has no effect. Files that change meanwhile are copied again; git verifies the result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from consumers.contract.external import Pace
from consumers.repositories.base import Base, write_base
from consumers.repositories.carry_over import keystones
from consumers.repositories.fingerprint import fingerprint
from consumers.repositories.git import GitFailed, Steps, failure, run
from consumers.repositories.proof import prove
from consumers.repositories.refs import read_refs
from consumers.repositories.storage import Copy, NotAPlace, Root, sync_directory
from consumers.repositories.trees import Changing, Entry, copy_file, dress, is_gits, walk

_PASSES: Final = 5
_SYNCED_ONE_BY_ONE: Final = 500
_AT_ONCE: Final = 20
_SYNC: Final = ("sync", "--file-system")
_DERIVED: Final = ("info/commit-graph", "info/commit-graphs/*", "info/packs", "pack/multi-pack-index*", "pack/*.bitmap")


def copy(
    source: Copy, root: Root, *, seconds: float, passes: int = _PASSES, synced_one_by_one: int = _SYNCED_ONE_BY_ONE
) -> Steps[Copy]:
    """Return a new copy of `source` below headrace's own directory in `root`, for the caller to put into its place.

    It has all refs and objects that the source had when it was read; later changes of the source are left to
    `carry_over.carry`, which recognises them by the base in the copy. Killed or closed at any moment, it leaves at most
    an unused directory. Raises NotAPlace if part of the repository cannot be moved, GitFailed if the copy cannot be
    proven to be complete, and OSError of the root.

    The source is read in at most so many `passes`, and more than `synced_one_by_one` files are synced as a file system.
    """
    made = Copy(root, source.name, root.coming(source.name))
    try:
        refuse(source)
        before = yield from fingerprint(source.path)
        files = yield from _copied(source, made.path, seconds, passes)
        if not source.is_there:
            raise GitFailed("another process is removing it")
        # The base is the copy's state: anything else in the source is newer.
        arrived = yield from read_refs(made)
        write_base(made.path, source.path, Base(arrived, files, keystones(source), before))
        yield from prove(made, seconds=seconds, content=True)
        yield from _sync(made.path, synced_one_by_one)
    except BaseException:
        # Synchronously, since a generator that is being closed cannot wait.
        shutil.rmtree(made.path, ignore_errors=True)
        raise
    return made


def refuse(source: Copy) -> None:
    """Raise NotAPlace if a repository depends on its location, or another one depends on it."""
    path = source.path
    for name in ("objects", "objects/info", "objects/pack", "refs"):
        if (path / name).is_symlink():
            raise NotAPlace(f"{name} is a symbolic link: replace it by its target")
    for name in ("alternates", "http-alternates"):
        lender = path / "objects/info" / name
        if lender.exists() and lender.read_bytes().strip():
            raise NotAPlace(
                f"it uses objects of another repository (objects/info/{name}): run `git repack -a -d`, then remove that"
                " file"
            )
    if (path / "commondir").exists():
        raise NotAPlace("it is a linked working tree, not a repository of its own")
    for each in path.glob("worktrees/*/gitdir"):
        tree = Path(os.path.join(each.parent, os.fsdecode(each.read_bytes()).strip()))
        if tree.exists():
            raise NotAPlace(f"working tree {tree.parent} is linked to it: remove it with `git worktree remove`")
    if any(not each.is_dir(follow_symlinks=False) for each in list(os.scandir(path.parent))):
        raise NotAPlace(f"{path.parent} has other files next to it, such as a working tree")


def _copied(source: Copy, made: Path, seconds: float, passes: int) -> Steps[Mapping[str, Entry]]:
    """Copy everything, repeatedly until nothing changed meanwhile; return the files' entries when they were copied."""
    deadline = time.monotonic() + seconds
    have: dict[str, Entry] = {}
    made.mkdir(mode=0o700)
    for _ in range(passes):
        found = yield from walk(source.path, files_only=False)
        # A gc writes objects to their new place before it removes the old one.
        for path in [path for path in have.keys() - found.keys() if have[path].kind != "directory"]:
            (made / path).unlink(missing_ok=True)
            del have[path]
        changed = [path for path, each in found.items() if have.get(path) != each]
        if not changed:
            break
        for path in changed:
            if time.monotonic() > deadline:
                raise GitFailed("the copy took longer than clone_seconds")
            have.pop(path, None)
            with contextlib.suppress(FileNotFoundError, Changing):
                have[path] = yield from _copy_one(source.path / path, made / path, found[path])
            yield Pace.BUSY
    else:
        # The repository changes constantly: the copy is proven to be complete, except for files that git derives.
        _drop_what_git_derives(made / "objects")
    directories = [path for path, each in have.items() if each.kind == "directory"]
    for path in sorted(directories, reverse=True):
        try:
            dress(source.path / path, made / path)
        except FileNotFoundError:  # git removes empty directories
            with contextlib.suppress(OSError):
                (made / path).rmdir()
    dress(source.path, made)
    return {path: each for path, each in have.items() if not is_gits(path)}


def _drop_what_git_derives(objects: Path) -> None:
    for pattern in _DERIVED:
        for path in objects.glob(pattern):
            path.unlink()


def _copy_one(source: Path, made: Path, wanted: Entry) -> Steps[Entry]:
    if wanted.kind == "directory":
        made.mkdir(mode=0o700, exist_ok=True)
        return wanted
    made.unlink(missing_ok=True)
    return (yield from copy_file(source, made, 3600.0))


def _sync(made: Path, one_by_one: int) -> Steps[None]:
    """Sync a copy to disk."""
    written = [path for directory, _, names in os.walk(made) for path in _within(Path(directory), names)]
    if len(written) > one_by_one:
        ended = yield from run(*_SYNC, str(made), seconds=3600.0)
        if ended.code != 0:
            raise failure("sync", ended)
        return
    for path in written:
        _begin_writing(path)
    for number, path in enumerate(written):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if number % _AT_ONCE == 0:
            yield Pace.BUSY


def _begin_writing(path: Path) -> None:
    """Start writing a file to disk without waiting, so that the later syncs share their journal commits."""
    if sys.platform == "linux" and path.is_file():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _within(directory: Path, names: list[str]) -> list[Path]:
    return [*(path for name in names if not (path := directory / name).is_symlink()), directory]
