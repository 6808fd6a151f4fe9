"""Making a copy of a repository in another root: whole, checked and durable before anybody can see it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from consumers.moving.git import UPLOAD_PACK, GitFailed, Steps, git
from consumers.moving.places import Root, sync_directory
from consumers.moving.refs import BASE, Refs, read_refs, set_symbolic, symbolic, write_base
from consumers.outside import Pace

_GITS_OWN: Final = frozenset(
    ("HEAD", "config", "packed-refs", "shallow", "FETCH_HEAD", "ORIG_HEAD", "index", "gc.pid", "gc.log")
)
_EXTENSIONS: Final = re.compile(rb"^\[extensions\][^\[]*", re.MULTILINE)
_SYNCS_AT_ONCE: Final = 20


def copy(source: Path, root: Root, name: str, *, seconds: float) -> Steps[None]:
    """Copy `source` into the name's place in `root`; what lies there already stays, and the copy is dropped.

    The copy appears there by one rename, with all refs and objects that the source had when it was read; what the
    source got meanwhile is for `carrying.carry`, which the base left in the copy tells from the rest. Killed or closed
    at any moment it leaves at most a worthless directory. Raises GitFailed, and OSError of the root.
    """
    made = root.coming(name)
    try:
        before = yield from read_refs(source)
        # By the protocol and not by linking files: it reads a repository that is written to as a whole, and git
        # checks every object on its way.
        yield from git(
            "clone", "--quiet", "--mirror", "--no-local", "--template=", f"--upload-pack={UPLOAD_PACK}", "--",
            str(source), str(made), seconds=seconds,
        )  # fmt: skip
        after = yield from read_refs(source)
        arrived = yield from _with_symbolic(made, before)
        _check(before, arrived, after)
        yield from git("fsck", "--connectivity-only", "--no-dangling", "--no-progress", at=made, seconds=seconds)
        yield from _keep_files(source, made)
        write_base(made, arrived)
        yield from _sync(made)
        root.install(made, name)
    finally:
        # At once, since a generator that is closed cannot wait: a copy is a few files.
        shutil.rmtree(made, ignore_errors=True)


def _with_symbolic(made: Path, source: Refs) -> Steps[Refs]:
    """Make symbolic what is symbolic in the source, of which a clone takes over HEAD alone; return the copy's refs."""
    have = yield from read_refs(made)
    wrong = {
        ref: value
        for ref, value in source.items()
        if ref in have and have[ref] != value and (symbolic(value) or ref == "HEAD")
    }
    for ref, value in wrong.items():
        yield from set_symbolic(made, ref, value)
    return (yield from read_refs(made)) if wrong else have


def _check(before: Refs, arrived: Refs, after: Refs) -> None:
    """Raise GitFailed unless each ref that the source had throughout arrived, and none that it never had."""
    for ref in before.keys() | after.keys() | arrived.keys():
        if before.get(ref) == after.get(ref) != arrived.get(ref):
            raise GitFailed("not all refs arrived in the copy as they are")


def _keep_files(source: Path, made: Path) -> Steps[None]:
    """Take over the settings and what else an application keeps beside git's own files."""
    ours, theirs = (made / "config").read_bytes(), (source / "config").read_bytes()
    # How the objects and refs are stored is the copy's own matter; where it is the same, the file is.
    if _EXTENSIONS.findall(ours) == _EXTENSIONS.findall(theirs):
        (made / "config").write_bytes(theirs)
    else:
        yield from git("config", "--file", str(made / "config"), "--remove-section", "remote.origin", accept=(0, 128))
    for directory in (source, source / "info"):
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name in _GITS_OWN or path.name.startswith(BASE) or path.suffix == ".lock":
                continue
            if path.is_symlink() or not path.is_file():
                continue
            target = made / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())


def _sync(made: Path) -> Steps[None]:
    """Make a copy outlast a loss of power; git did so for what it wrote itself, but for the directories."""
    for number, path in enumerate(_written(made)):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if number % _SYNCS_AT_ONCE == 0:
            yield Pace.BUSY


def _written(made: Path) -> Iterator[Path]:
    for directory, _, files in os.walk(made):
        yield Path(directory)
        if Path(directory) in (made, made / "info"):
            yield from (Path(directory) / file for file in files)
