"""A git storage for the tests: directories that are repositories, and those that only look like it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKS = ("objects", "refs", "HEAD")


def repository(storage: Path, path: str | bytes) -> Path:
    """Make what the walk takes for a repository; return its directory."""
    directory = Path(os.fsdecode(os.path.join(os.fsencode(storage), os.fsencode(path))))
    (directory / "objects").mkdir(parents=True)
    (directory / "refs").mkdir()
    (directory / "HEAD").write_text("ref: refs/heads/main\n")
    return directory


def marked(storage: Path) -> Path:
    """Make a storage as Gitaly leaves it at its first start: empty, with its mark; return it."""
    storage.mkdir(parents=True, exist_ok=True)
    (storage / ".gitaly-metadata").write_text('{"gitaly_filesystem_id":"7c2f"}')
    return storage


def hashed(project: int) -> str:
    """Return the path that GitLab gives the repository of a project."""
    digest = hashlib.sha256(str(project).encode()).hexdigest()
    return f"@hashed/{digest[:2]}/{digest[2:4]}/{digest}.git"


@contextmanager
def without_rights() -> Iterator[Path]:
    """Give a directory, and for as long a user whom permissions bind, as they do not bind root."""
    with tempfile.TemporaryDirectory(prefix="headrace-storage-") as made:
        path = Path(made)
        path.chmod(0o755)
        root = os.geteuid() == 0
        try:
            yield path
        finally:
            if root:
                os.seteuid(0)
            for blocked in path.rglob("*"):
                if blocked.is_dir() and not blocked.is_symlink():
                    blocked.chmod(0o755)


def drop_rights() -> None:
    """Become nobody until the end of `without_rights`; another user than root has nothing to drop."""
    if os.geteuid() == 0:
        os.seteuid(65_534)


def regain_rights() -> None:
    """Undo `drop_rights` before the end of `without_rights`."""
    if os.getuid() == 0:
        os.seteuid(0)
