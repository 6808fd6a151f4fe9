"""Checks the preconditions of moving repositories, at a start and for `headrace check`."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from consumers.repositories.storage import OWN, Root, is_repository, root_of
from infra.settings.gitserver import GitserverSettings
from schemas.errors import HeadraceError, PreflightFailed, SettingsError

_GIT: Final = (2, 36)
"""The first version with core.fsync: a copy must be durable before the other one is removed."""
_GIT_SAYS: Final = re.compile(r"git version (\d+)\.(\d+)\S*")
_PATIENCE_SECONDS: Final = 30.0
_MOUNTS: Final = Path("/proc/self/mountinfo")
_MOUNT_POINT: Final = 4
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_EFFECTIVE: Final = os.access in os.supports_effective_ids
_LOOKED_AT: Final = 2_000
_OWNERS: Final = 20
"""How many directories to read to find so many repositories, whose owners are compared with this process's user."""


class JanitorNotConfirmed(SettingsError):
    """See "Before the start" in docs/how-to/moving-repositories.md, then set gitserver.wrong_shard_deletion."""


class GitUnusable(PreflightFailed):
    """Install git 2.36 or newer, first in PATH."""


class RootUnusable(PreflightFailed):
    """Run as the user that owns the repositories, or as root."""


class RootInParts(PreflightFailed):
    """Give each node a single file system: a copy is put in its place by a rename, which is atomic only within one."""


def missing(gitserver: GitserverSettings) -> Iterator[HeadraceError]:
    """Yield what prevents moving repositories, the most serious problem first. Read-only."""
    yield from _of_janitor(gitserver)
    yield from _of_git()
    if not gitserver.nodes:
        yield SettingsError("gitserver.nodes is empty", remedy="list the nodes to move repositories between")
    roots: dict[str, Root] = {}
    for node in gitserver.nodes:
        try:
            roots[node] = root_of(gitserver, node)
        except SettingsError as error:
            yield error
    yield from _of_overlaps(roots)
    for node, root in roots.items():
        yield from _of_root(node, root)


def require(gitserver: GitserverSettings) -> None:
    """Raise the first problem."""
    for error in missing(gitserver):
        raise error


def _of_janitor(gitserver: GitserverSettings) -> Iterator[HeadraceError]:
    if gitserver.wrong_shard_deletion is None:
        yield JanitorNotConfirmed(
            "gitserver deletes repositories that are not on their md5 node, and so every moved one; the settings do"
            " not confirm that this is off",
            remedy='disable it on every node, then set gitserver.wrong_shard_deletion to "off"; or to "follows_cursor"'
            " if gitserver looks repositories up as"
            ' readers do (docs/how-to/moving-repositories.md, "Before the start")',
        )


def _of_git() -> Iterator[HeadraceError]:
    if (git := shutil.which("git")) is None:
        yield GitUnusable("git is not installed on this machine")
        return
    try:
        ended = subprocess.run([git, "--version"], capture_output=True, timeout=_PATIENCE_SECONDS, check=False)
        said = ended.stdout.decode("utf-8", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        yield GitUnusable(f"cannot run {git}: {error}")
        return
    found = _GIT_SAYS.match(said)
    if found is None:
        yield GitUnusable(f"{git} printed no version: {said[:100]!r}")
    elif (int(found[1]), int(found[2])) < _GIT:
        yield GitUnusable(f"{git} is version {found[0].removeprefix('git version ')}, which is too old")


def _of_overlaps(roots: Mapping[str, Root]) -> Iterator[HeadraceError]:
    for (one, first), (other, second) in itertools.combinations(roots.items(), 2):
        if first.path.is_relative_to(second.path) or second.path.is_relative_to(first.path):
            yield SettingsError(
                f"the roots of {one} and {other} are the same directory, or one is inside the other",
                remedy="give each node the directory of its own repositories",
            )


def _of_root(node: str, root: Root) -> Iterator[HeadraceError]:
    own = root.path / OWN
    # In this order: a directory's content can be read only by a user that may enter it.
    for path in (root.path, own, *(own / kind for kind in ("coming", "leaving", "gone", "set-aside"))):
        if not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_dir():
            remedy = "remove it: headrace keeps unfinished copies there"
            yield RootUnusable(f"{path} on node {node} is not a directory", remedy=remedy)
            return
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
            yield RootUnusable(f"user {os.geteuid()} cannot write to {path} on node {node}")
            return
    for mount in _mounts_below(root.path):
        yield RootInParts(f"another file system is mounted at {mount}, below the root of node {node}")
    owners = set(itertools.islice(_owners(root.path), _OWNERS))
    if owners and os.geteuid() not in (0, *owners):
        yield RootUnusable(
            f"the repositories of node {node} belong to user {min(owners)}, and user {os.geteuid()} cannot create"
            " copies with that owner"
        )


def _mounts_below(root: Path) -> Iterator[Path]:
    """Yield the mount points below a directory, on Linux; elsewhere nothing."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        mount = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[_MOUNT_POINT]))
        if mount != root and mount.is_relative_to(root):
            yield mount


def _owners(root: Path) -> Iterator[int]:
    """Yield the owners of some repositories."""
    directories = [root]
    for _ in range(_LOOKED_AT):
        if not directories:
            return
        at = directories.pop()
        try:
            if is_repository(at / ".git"):
                yield (at / ".git").stat().st_uid
            with os.scandir(at) as entries:
                below = [
                    Path(each)
                    for each in entries
                    if each.is_dir(follow_symlinks=False) and each.name not in (OWN, ".git")
                ]
        except OSError:
            continue
        directories += below
