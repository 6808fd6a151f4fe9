"""A git storage for the tests: repositories, and directories that only look like one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKS = ("objects", "refs", "HEAD")


def repository(storage: Path, path: str | bytes) -> Path:
    """Create a directory that the walk accepts as a repository; return it."""
    directory = Path(os.fsdecode(os.path.join(os.fsencode(storage), os.fsencode(path))))
    (directory / "objects").mkdir(parents=True)
    (directory / "refs").mkdir()
    (directory / "HEAD").write_text("ref: refs/heads/main\n")
    return directory


def marked(storage: Path) -> Path:
    """Create a storage as after Gitaly's first start: empty, with its marker file; return it."""
    storage.mkdir(parents=True, exist_ok=True)
    (storage / ".gitaly-metadata").write_text('{"gitaly_filesystem_id":"7c2f"}')
    return storage


def hashed(project: int) -> str:
    """Return GitLab's path for the repository of a project."""
    digest = hashlib.sha256(str(project).encode()).hexdigest()
    return f"@hashed/{digest[:2]}/{digest[2:4]}/{digest}.git"


@contextmanager
def without_rights() -> Iterator[Path]:
    """Yield a directory, and until the end a user to whom permissions apply, unlike root."""
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
    """Become an unprivileged user until the end of `without_rights`; only root has rights to drop."""
    if os.geteuid() == 0:
        os.seteuid(65_534)


def regain_rights() -> None:
    """Undo `drop_rights` before the end of `without_rights`."""
    if os.getuid() == 0:
        os.seteuid(0)
