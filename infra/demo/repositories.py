"""Creates real bare git repositories quickly: one by `git init`, the others as copies, each with its own commit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from schemas.errors import HeadraceError

_STREAM: Final = """\
commit refs/heads/main
committer Demo <demo@example.com> 1700000000 +0000
data {size}
{message}
M 644 inline README.md
data {size}
{message}

reset refs/tags/v1
from refs/heads/main

"""


def make(paths: Iterable[Path]) -> None:
    """Create a bare repository at each of `paths`, with a branch, a tag and a unique commit."""
    template: Path | None = None
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if template is None:
            git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", "--", str(path))
            template = path.with_name(f".{path.name}.empty")
            shutil.copytree(path, template)
        else:
            shutil.copytree(template, path)
        message = f"This is {path.name} in {path.parent.name}"
        git("fast-import", "--quiet", at=path, text=_STREAM.format(size=len(message), message=message))
    if template is not None:
        shutil.rmtree(template)


def refs(path: Path) -> str:
    """Return the refs of a repository with their objects."""
    return git("for-each-ref", "--format=%(refname) %(objectname)", at=path)


def is_sound(path: Path) -> bool:
    """Return whether `git fsck` finds no errors."""
    return not git("fsck", "--full", "--strict", "--no-progress", at=path).strip()


def git(*words: str, at: Path | None = None, text: str = "") -> str:
    """Run git and return its output; raises HeadraceError if it fails."""
    # The demo's repositories must not depend on the user's git configuration.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    where = [] if at is None else ["--git-dir", str(at)]
    ended = subprocess.run(
        ["git", *where, *words],  # noqa: S607 - git from the PATH
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if ended.returncode:
        raise HeadraceError(f"git {words[0]} failed: {ended.stderr.strip()}", remedy="install git for the demo")
    return ended.stdout
