"""Kafka's classes, parsed once for each set of jars and Java: halves the broker's time to start.

HotSpot maps such an archive (class data sharing) and falls back to the jars when it does not fit. The first start
notes which classes it loads, which is free; the second makes the archive (some seconds, 60 MB beside the jars); the
later ones use it. A first and only start, such as a demonstration's, never waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

from infra.stack.processes.keeper import Keeper
from schemas.errors import HeadraceError

LIST = "classes.lst"


class ClassArchive:
    """The archive for the jars in `home` run by `java` with `options`; `directory` is the broker's own."""

    def __init__(self, home: Path, java: Path, options: tuple[str, ...], directory: Path) -> None:
        release = java.parent.parent / "release"
        version = release.read_bytes() if release.exists() else b""
        key = hashlib.sha256(repr((str(java), options)).encode() + version).hexdigest()[:12]
        self._home, self._java, self._options, self._directory = home, java, options, directory
        self._list = home / f"classes-{key}.lst"
        self._archive = home / f"classes-{key}.jsa"

    def launch_options(self, keeper: Keeper) -> list[str]:
        """Return what to add to the broker's command line, making the archive if it is time for it."""
        if not self._archive.exists() and self._list.exists():
            self._make(keeper)
        if self._archive.exists() and self._archive.stat().st_size:
            return [f"-XX:SharedArchiveFile={self._archive}"]
        return [] if self._list.exists() else [f"-XX:DumpLoadedClassList={self._directory / LIST}"]

    def note_classes(self) -> None:
        """Keep the list of what a broker has loaded; to be called once it serves."""
        noted = self._directory / LIST
        if self._list.exists() or not noted.exists():
            return
        with contextlib.suppress(OSError):  # a cache that is read-only, or full, costs speed and nothing else
            self._keep(noted)

    def _keep(self, noted: Path) -> None:
        whole_lines = noted.read_bytes().rpartition(b"\n")[0] + b"\n"  # the broker is still writing
        new = self._list.with_suffix(f".{os.getpid()}")
        new.write_bytes(whole_lines)
        new.rename(self._list)

    def _make(self, keeper: Keeper) -> None:
        with self._list.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is at it: start without
                return
            if self._archive.exists():
                return
            new = self._archive.with_suffix(".new")  # the lock's holder is alone with it
            command: list[str | Path] = [
                self._java,
                *self._options,
                "-Xshare:dump",
                f"-XX:SharedClassListFile={self._list}",
                f"-XX:SharedArchiveFile={new}",
                "-Xlog:disable",
                "-cp",
                f"{self._home}/*",
            ]
            try:
                keeper.run(command, log=self._directory / "archive.log", cwd=self._directory)
            except HeadraceError:  # this Java cannot; an empty archive says so to later starts, which need none
                new.unlink(missing_ok=True)
                new.touch()
            new.rename(self._archive)
