"""The registry of kinds of repositories: how to create one and its new home's content, and the expected outcome.

`inventory` lists everything in a repository's directory, as files and not as git with its configuration.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.consumers.gitservers import make_repository

Make = Callable[[Path], None]
Leave = Callable[[Path, Path], None]

_WORK = re.compile(rb"([^/]*|(refs|logs)/.*)\.lock|gc\.(pid|log)|objects/(.*/)?(tmp_|incoming-)[^/]*", re.DOTALL)
_GITS = re.compile(rb"(objects|refs)/.*|packed-refs|HEAD", re.DOTALL)

MARK = "a-command-ran"
"""The file, in the directory above all roots, that a hostile repository's commands create."""


@dataclass(frozen=True)
class Kind:
    """One kind. `refused` is part of the reason why it is not moved; `said` is part of the move's report."""

    name: str
    make: Make
    leave: Leave | None = None
    refused: str | None = None
    said: str | None = None


KINDS: dict[str, Kind] = {}


def kind(refused: str | None = None, *, leave: Leave | None = None, said: str | None = None) -> Callable[[Make], Make]:
    """Add the decorated function to the kinds; it gets a bare repository with one commit on main."""

    def add(make: Make) -> Make:
        def all_of_it(place: Path) -> None:
            make_repository(place)
            make(place)

        _add(Kind(make.__name__, all_of_it, leave, refused, said))
        return make

    return add


def from_scratch(refused: str | None = None) -> Callable[[Make], Make]:
    """Add the decorated function to the kinds; it gets an unused path."""

    def add(make: Make) -> Make:
        _add(Kind(make.__name__, make, None, refused))
        return make

    return add


def leftover(*, moved_over: bool = True) -> Callable[[Leave], Leave]:
    """Add a kind whose new home already has a directory, which the decorated function creates."""

    def add(leave: Leave) -> Leave:
        said = "set aside" if moved_over else None
        _add(Kind(f"leftover_{leave.__name__}", make_repository, leave, None, said))
        return leave

    return add


def _add(one: Kind) -> None:
    assert one.name not in KINDS
    KINDS[one.name] = one


def write(path: Path, content: bytes | str = "x\n", mode: int = 0o644) -> Path:
    """Write a file with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def configure(place: Path, text: str) -> None:
    """Add to a repository's config."""
    with (place / "config").open("a") as config:
        config.write(text)


def inventory(place: Path) -> dict[str, Any]:
    """Return everything in a repository's directory, except temporary files of running processes.

    `refs` and `objects` are independent of their storage; `stored` has their files, which are the same unless git
    writes to the repository; `files` are all others.
    """
    files: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for path in _paths(os.fsencode(place)):
        if not _WORK.fullmatch(path):
            found = _file(Path(os.fsdecode(os.path.join(os.fsencode(place), path))))
            (stored if _GITS.fullmatch(path) else files)[os.fsdecode(path)] = found
    return {"refs": _refs(place), "objects": _objects(place), "files": files, "stored": stored}


def _refs(place: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    if (place / "packed-refs").exists():
        for line in os.fsdecode((place / "packed-refs").read_bytes()).split("\n"):
            if line and line[0] not in "#^":
                value, _, name = line.partition(" ")
                found[name] = value
    for directory, _, names in os.walk(place / "refs"):
        for name in names:
            path = Path(directory, name)
            if not name.endswith(".lock"):
                found[str(path.relative_to(place))] = os.fsdecode(path.read_bytes()).strip()
    head = place / "HEAD"
    found["HEAD"] = f"-> {head.readlink()}" if head.is_symlink() else head.read_text()
    return found


def _objects(place: Path) -> frozenset[str]:
    """Return all objects with their types and sizes, as git lists them without the repository's configuration."""
    sha256 = "objectformat = sha256" in (place / "config").read_text().lower()
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run(
            [
                "git",
                "init",
                "-q",
                "--bare",
                "--template=",
                f"--object-format={'sha256' if sha256 else 'sha1'}",
                scratch,
            ],
            check=True,
            env=environment,
        )
        said = subprocess.run(
            ["git", f"--git-dir={scratch}", "cat-file", "--batch-all-objects", "--batch-check"],
            capture_output=True,
            check=False,
            env={**environment, "GIT_OBJECT_DIRECTORY": str(place / "objects")},
        )
    return frozenset(said.stdout.decode().splitlines())


def _paths(place: bytes) -> list[bytes]:
    found = [b"."]
    for directory, directories, names in os.walk(place):
        here = os.path.relpath(directory, place)
        found += [os.path.normpath(os.path.join(here, each)) for each in [*directories, *names]]
    return found


def _file(path: Path) -> tuple[Any, ...]:
    """Return kind, mode, owner, group, content, time and extended attributes (including ACLs)."""
    status = path.lstat()
    what, when = None, None
    if stat.S_ISLNK(status.st_mode):
        return ("link", status.st_uid, status.st_gid, str(path.readlink()), status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        what, when = hashlib.sha256(path.read_bytes()).hexdigest(), status.st_mtime_ns
    extended = {name: os.getxattr(path, name) for name in os.listxattr(path)} if hasattr(os, "listxattr") else {}
    return (oct(status.st_mode), status.st_uid, status.st_gid, what, when, tuple(sorted(extended.items())))
