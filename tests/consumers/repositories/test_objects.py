"""Copies of objects: interrupted at every file, and while git packs the source's objects, and taken up again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from consumers.repositories import objects, storage
from consumers.repositories.git import Steps
from consumers.repositories.objects import bring_objects
from consumers.repositories.proof import prove
from consumers.repositories.storage import Copy, Root
from tests.consumers.gitserver.kinds.registry import inventory
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import git, make_repository, push


class _Killed(BaseException):
    """In place of SIGKILL: nothing of the product catches it."""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Copy, Copy]:
    """A repository, one file of it packed and one loose, and an empty one at another root."""
    roots = [Root(tmp_path / each) for each in ("a", "b")]
    for root in roots:
        root.path.mkdir()
    source, target = (root.copy("host/name") for root in roots)
    make_repository(source.path)
    git(source.path, "repack", "-dqa")
    push(source.path, "next", "next")
    git(target.root.path, "init", "--quiet", "--bare", str(target.path))
    return source, target


def _bring(source: Copy, target: Copy) -> None:
    result(bring_objects(source, target, 60.0))


def _interrupted_after(file: int, monkeypatch: pytest.MonkeyPatch, source: Copy, target: Copy) -> bool:
    """Be killed once so many files were copied; return whether there were so many."""
    left = iter(range(file))
    synced = storage.sync_directory

    def kill(directory: Path) -> None:
        if next(left, None) is None:
            raise _Killed
        synced(directory)

    with monkeypatch.context() as patched, suppress(_Killed):
        patched.setattr(objects, "sync_directory", kill)
        _bring(source, target)
        return False
    return True


def _objects(copy: Copy) -> set[str]:
    return set(inventory(copy.path)["objects"])


def test_copying_that_was_killed_after_any_file_is_completed(
    pair: tuple[Copy, Copy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, _ = pair
    interrupted = 0
    while True:
        target = Root(tmp_path / "b").copy(f"host/number{interrupted}")
        git(tmp_path, "init", "--quiet", "--bare", str(target.path))
        if not _interrupted_after(interrupted, monkeypatch, source, target):
            break
        interrupted += 1

        _bring(source, target)

        assert _objects(source) <= _objects(target), f"killed after {interrupted} files"
        result(prove(target, seconds=60, content=True))
    assert interrupted > 3  # a pack's two files, and a commit's three objects


@pytest.mark.parametrize("listing", ["_packs", "_listed"])
def test_objects_that_git_packs_while_they_are_listed_are_not_missed(
    pair: tuple[Copy, Copy], monkeypatch: pytest.MonkeyPatch, listing: str
) -> None:
    source, target = pair
    _bring(source, target)
    pushed = push(source.path, "later", "later")
    original = getattr(objects, listing)
    left = [source.path / "objects"]

    def packed_after(directory: Path) -> list[str]:
        found: list[str] = original(directory)
        if directory in left:
            left.remove(directory)
            git(source.path, "repack", "-dqa")
        return found

    with monkeypatch.context() as patched, suppress(FileNotFoundError):
        patched.setattr(objects, listing, packed_after)
        _bring(source, target)
        assert not left
        assert git(target.path, "cat-file", "-t", pushed) == "commit"
    _bring(source, target)
    assert _objects(source) <= _objects(target)


def test_pack_that_a_gc_removes_before_it_is_copied_is_not_taken_for_one_without_files(
    pair: tuple[Copy, Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    git(source.path, "repack", "-dqa")
    missing = objects._objects_missing

    def repacked_after(*arguments: Any) -> Steps[set[str]]:
        found = yield from missing(*arguments)
        push(source.path, "later", "later")
        git(source.path, "repack", "-dqa")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(objects, "_objects_missing", repacked_after)
        with pytest.raises(FileNotFoundError):
            _bring(source, target)

    _bring(source, target)

    assert _objects(source) <= _objects(target)
