"""Making a copy of a repository in another root: all of it, proven to be whole, durable before anybody can see it.

It is a copy of the directory, file by file, and not a clone: what git would not take along arrives too, and nothing
that the repository says has a say in it. What is written to meanwhile is copied again; git proves the outcome.
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


def copy(source: Copy, root: Root, *, seconds: float) -> Steps[Copy]:
    """Return a new copy of `source` below headrace's own directory in `root`, for the caller to put into its place.

    It has all refs and objects that the source had when it was read; what the source gets meanwhile is for
    `carrying.carry`, which the base left in the copy tells from the rest. Killed or closed at any moment it leaves at
    most a worthless directory. Raises NotAPlace when not all of it can be moved, GitFailed when it cannot be proven to
    be whole, and OSError of the root.
    """
    made = Copy(root, source.name, root.coming(source.name))
    try:
        refuse(source)
        before = yield from fingerprint(source.path)
        files = yield from _copied(source, made.path, seconds)
        if not source.is_there:
            raise GitFailed("somebody is removing it")
        # What the copy has is the base: whatever the source has besides, it got meanwhile.
        arrived = yield from read_refs(made)
        write_base(made.path, source.path, Base(arrived, files, keystones(source), before))
        yield from prove(made, seconds=seconds, content=True)
        yield from _sync(made.path)
    except BaseException:
        # At once, since a generator that is closed cannot wait.
        shutil.rmtree(made.path, ignore_errors=True)
        raise
    return made


def refuse(source: Copy) -> None:
    """Raise NotAPlace when a repository depends on where it lies, or something else does."""
    path = source.path
    for name in ("objects", "objects/info", "objects/pack", "refs"):
        if (path / name).is_symlink():
            raise NotAPlace(f"{name} is a symbolic link: put what it leads to in its place")
    for name in ("alternates", "http-alternates"):
        lender = path / "objects/info" / name
        if lender.exists() and lender.read_bytes().strip():
            raise NotAPlace(
                f"it needs objects that lie elsewhere (objects/info/{name}): `git repack -a -d`, then remove that file"
            )
    if (path / "commondir").exists():
        raise NotAPlace("it is a linked working tree's and no repository of its own")
    for each in path.glob("worktrees/*/gitdir"):
        tree = Path(os.path.join(each.parent, os.fsdecode(each.read_bytes()).strip()))
        if tree.exists():
            raise NotAPlace(f"the working tree {tree.parent} is linked to it: `git worktree remove` it")
    if any(not each.is_dir(follow_symlinks=False) for each in list(os.scandir(path.parent))):
        raise NotAPlace(f"a working tree, or something else, lies beside it in {path.parent}")


def _copied(source: Copy, made: Path, seconds: float) -> Steps[Mapping[str, Entry]]:
    """Copy everything, again and again until nothing changed meanwhile; return what the files were when copied."""
    deadline = time.monotonic() + seconds
    have: dict[str, Entry] = {}
    made.mkdir(mode=0o700)
    for _ in range(_PASSES):
        found = yield from walk(source.path, files_only=False)
        # A gc puts elsewhere what it takes away, before it does.
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
        # It is written to all the time: what was copied is proven to be whole, but for what git derives from it.
        _drop_what_git_derives(made / "objects")
    directories = [path for path, each in have.items() if each.kind == "directory"]
    for path in sorted(directories, reverse=True):
        try:
            dress(source.path / path, made / path)
        except FileNotFoundError:  # git removes directories that are empty
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


def _sync(made: Path) -> Steps[None]:
    """Make a copy outlast a loss of power."""
    written = [path for directory, _, names in os.walk(made) for path in _within(Path(directory), names)]
    if len(written) > _SYNCED_ONE_BY_ONE:
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
    """Have the kernel write a file without waiting for it: the syncs to come share their commits of the journal."""
    if sys.platform == "linux" and path.is_file():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _within(directory: Path, names: list[str]) -> list[Path]:
    return [*(path for name in names if not (path := directory / name).is_symlink()), directory]
