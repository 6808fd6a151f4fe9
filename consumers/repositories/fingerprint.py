"""Computes the fingerprint of a repository's objects and refs, which changes whenever one of them does.

Git never writes into a file of objects or refs, but replaces it. So names, inode numbers, sizes and times suffice, and
no content is read.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from consumers.contract.external import Pace
from consumers.repositories.git import Steps
from consumers.repositories.trees import TICK_SECONDS

_ENTRIES_AT_ONCE: Final = 2_000


def fingerprint(repository: Path) -> Steps[str]:
    """Return the fingerprint; empty, which means none, if a file was written just now: within one tick of the file
    system's clock another file may replace it and look the same.
    """
    found = hashlib.sha256()
    newest = 0
    for number, (path, status) in enumerate(_files(str(repository))):
        found.update(os.fsencode(path))
        if status is not None:
            newest = max(newest, status.st_mtime_ns)
            found.update(b"\0%d\0%d\0%d" % (status.st_ino, status.st_size, status.st_mtime_ns))
        found.update(b"\n")
        if number % _ENTRIES_AT_ONCE == 0:
            yield Pace.BUSY
    return found.hexdigest() if time.time() - newest / 1e9 > TICK_SECONDS else ""


def _files(repository: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield the paths within the repository with their status, None if the path does not exist."""
    for top in ("objects", "refs", "reftable", "worktrees"):
        for directory, directories, names in os.walk(f"{repository}/{top}"):
            directories.sort()
            within = directory[len(repository) + 1 :]
            for name in sorted(names):
                yield f"{within}/{name}", _status(f"{directory}/{name}")
    for name in ("HEAD", "packed-refs", "shallow"):
        yield name, _status(f"{repository}/{name}")


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
