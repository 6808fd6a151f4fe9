"""Directories at a repository's new home before the move: they are set aside, and the live copy wins."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.consumers.gitserver.kinds.hostile import commands
from tests.consumers.gitserver.kinds.registry import leftover, write
from tests.consumers.gitserver.kinds.whole import commit, loosen
from tests.consumers.gitservers import git, make_repository, push


def _copied(new: Path, old: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(old, new, symlinks=True)


@leftover()
def without_objects(new: Path, old: Path) -> None:
    _copied(new, old)
    shutil.rmtree(new / "objects")
    (new / "objects").mkdir()


@leftover()
def with_one_object_missing(new: Path, old: Path) -> None:
    _copied(new, old)
    loosen(new)
    blob = git(old, "rev-parse", "main:file")
    (new / "objects" / blob[:2] / blob[2:]).unlink()


@leftover()
def with_empty_object_files(new: Path, old: Path) -> None:
    _copied(new, old)
    loosen(new)
    for path in new.glob("objects/??/*"):
        path.chmod(0o644)
        path.write_bytes(b"")


@leftover()
def whole_but_stale(new: Path, old: Path) -> None:
    git(old, "tag", "moved", "main")
    push(old, "deleted", "deleted")
    push(old, "trunk", "trunk")
    _copied(new, old)
    git(old, "update-ref", "-d", "refs/heads/deleted")
    git(old, "update-ref", "refs/heads/forced", commit(old, "forced"))
    git(old, "update-ref", "refs/tags/moved", commit(old, "where the tag is now"))
    git(old, "symbolic-ref", "HEAD", "refs/heads/trunk")


@leftover()
def ahead_of_it(new: Path, old: Path) -> None:
    _copied(new, old)
    push(new, "main", "only here")


@leftover()
def of_another_repository(new: Path, old: Path) -> None:
    make_repository(new)


@leftover()
def with_rubbish(new: Path, old: Path) -> None:
    write(new / "rubbish")


@leftover()
def that_is_a_file(new: Path, old: Path) -> None:
    write(new, "gitdir: /nowhere\n")


@leftover(moved_over=False)
def that_is_an_empty_directory(new: Path, old: Path) -> None:
    new.mkdir(parents=True)


@leftover()
def with_a_lock(new: Path, old: Path) -> None:
    _copied(new, old)
    write(new / "packed-refs.lock")
    write(new / "HEAD.lock")


@leftover()
def with_files_of_a_move(new: Path, old: Path) -> None:
    _copied(new, old)
    write(new / "headrace-moving", "{}")


@leftover()
def that_runs_commands(new: Path, old: Path) -> None:
    _copied(new, old)
    commands(new)


@leftover()
def closed_to_all(new: Path, old: Path) -> None:
    _copied(new, old)
    (new / "objects").chmod(0o000)
