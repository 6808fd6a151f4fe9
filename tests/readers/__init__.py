"""Readers of repositories in Python, Go and Ruby, each a separate program that follows docs/how-to/routing.md.

A reader takes a file with its work (`Work`), and reads until its standard input ends: it chooses a name, asks the homes
in their order, and has git print a file from main's commit. It prints a line of JSON for each read:

    name    the repository's name
    asked   when it requested the cursors that it used, in seconds since the epoch; they are at least as recent
    began   when it started to read, after that
    ended   when it had finished
    tried   the nodes that it asked, in this order
    value   git's output, empty on failure
    error   why it failed, empty on success
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

READERS: Final = ("http", "query", "go", "ruby")
"""Python with `headrace route --serve`, Python with the query, and the reference readers of docs/reference/readers."""

_HERE: Final = Path(__file__).parent
_DOCS: Final = _HERE.parents[1] / "docs" / "reference" / "readers"
_MODULE: Final = "module headrace/readers\n\ngo 1.21\n"


class NotInstalled(Exception):
    """A reader's requirement is not installed, and cannot be downloaded here."""


def command(reader: str, directory: Path) -> list[str]:
    """Return a reader's command, without the file argument. Raises NotInstalled with the reason."""
    if reader == "go":
        return build_go("reader", directory)
    if reader == "ruby":
        tool = _installed("ruby")
        if subprocess.run([tool, "-e", "require 'pg'"], capture_output=True, check=False).returncode != 0:
            raise NotInstalled("Ruby has no pg: `gem install pg`, or Debian's ruby-pg")
        return [tool, str(_HERE / "reader.rb")]
    return [sys.executable, "-m", "tests.readers.reader", reader]


def build_go(program: str, directory: Path) -> list[str]:
    """Build one of this directory's programs with the packages in docs/reference/readers; see `command`."""
    tool = _installed("go")
    place = directory / f"go-{program}"
    (place / "routing").mkdir(parents=True)
    shutil.copy(_HERE / f"{program}.go", place / "main.go")
    shutil.copy(_DOCS / "routing.go", place / "routing")
    if program == "reader":
        shutil.copy(_DOCS / "following.go", place / "routing")
        for name in ("go.mod", "go.sum"):
            shutil.copy(_HERE / name, place)
    else:
        (place / "go.mod").write_text(_MODULE, encoding="ascii")
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    if not environment.keys() & {"HOME", "XDG_CACHE_HOME", "GOCACHE"}:
        environment["GOCACHE"] = str(directory / "cache")  # on other platforms the shared cache has it compiled
    built = subprocess.run(
        [tool, "build", "-o", "built", "."], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    if "dial tcp" in built.stderr or "module lookup disabled" in built.stderr:
        raise NotInstalled(f"Go's module for PostgreSQL cannot be downloaded: {built.stderr.strip()[:300]}")
    assert built.returncode == 0, built.stderr
    return [str(place / "built")]


def _installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise NotInstalled(f"{program} is not installed")
    return found
