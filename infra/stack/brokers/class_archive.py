"""Creates a class data sharing archive per set of jars and Java, which halves the broker's start time.

HotSpot maps the archive and falls back to the jars if it does not match. The first start records the loaded classes at
no cost; the second creates the archive (some seconds, 60 MB next to the jars); later starts use it. So a single start,
such as a demo's, never waits for it.
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
        """Return the options for the broker's command line, creating the archive at the second start."""
        if not self._archive.exists() and self._list.exists():
            self._make(keeper)
        if self._archive.exists() and self._archive.stat().st_size:
            return [f"-XX:SharedArchiveFile={self._archive}"]
        return [] if self._list.exists() else [f"-XX:DumpLoadedClassList={self._directory / LIST}"]

    def note_classes(self) -> None:
        """Keep the list of classes that a broker has loaded; called once it serves."""
        noted = self._directory / LIST
        if self._list.exists() or not noted.exists():
            return
        with contextlib.suppress(OSError):  # a read-only or full cache only costs speed
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
            except BlockingIOError:  # another process is creating it: start without
                return
            if self._archive.exists():
                return
            new = self._archive.with_suffix(".new")  # only the lock's holder writes it
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
            except HeadraceError:  # this Java cannot; an empty archive keeps later starts from trying
                new.unlink(missing_ok=True)
                new.touch()
            new.rename(self._archive)
