"""Copies a repository that is written to, repacked or removed meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.repositories import clone, trees
from consumers.repositories.clone import copy
from consumers.repositories.git import GitFailed
from consumers.repositories.storage import Copy, Root
from tests.consumers.gitserver.kinds.registry import inventory, write
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import git, is_whole, make_repository, push


@pytest.fixture
def source(tmp_path: Path) -> Copy:
    for each in ("a", "b"):
        (tmp_path / each).mkdir()
    made = Root(tmp_path / "a").copy("host/name")
    make_repository(made.path, commits=3)
    return made


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], object]], None]:
    """Calls a function before each file is copied, with the file's number."""

    def arrange(act: Callable[[int], object]) -> None:
        original, number = trees.copy_file, [0]

        def copy_file(*arguments: Any) -> Any:
            number[0] += 1
            act(number[0])
            return original(*arguments)

        monkeypatch.setattr(clone, "copy_file", copy_file)

    return arrange


def copied(source: Copy, tmp_path: Path, **limits: int) -> Copy:
    return result(copy(source, Root(tmp_path / "b"), seconds=60, **limits))


def test_copy_is_complete_despite_concurrent_pushes_and_repacks(
    source: Copy, meanwhile: Callable[..., None], tmp_path: Path
) -> None:
    def act(number: int) -> None:
        if number in (2, 9):
            push(source.path, f"pushed-{number}", "x")
        if number in (4, 12):
            git(source.path, "repack", "-adqn")
            git(source.path, "pack-refs", "--all")

    meanwhile(act)
    made = copied(source, tmp_path)
    assert is_whole(made.path)
    (made.path / "headrace-moving").unlink()
    assert inventory(made.path) == inventory(source.path)


def test_repository_that_keeps_changing_is_copied(source: Copy, meanwhile: Callable[..., None], tmp_path: Path) -> None:
    git(source.path, "commit-graph", "write", "--reachable")
    meanwhile(lambda number: push(source.path, f"pushed-{number}", str(number)) if number < 40 else None)
    made = copied(source, tmp_path, passes=2)
    assert is_whole(made.path)
    assert git(made.path, "rev-parse", "main") == git(source.path, "rev-parse", "main")
    assert not list(made.path.glob("objects/info/commit-graph*"))


def test_repository_removed_meanwhile_leaves_no_copy(
    source: Copy, meanwhile: Callable[..., None], tmp_path: Path
) -> None:
    meanwhile(lambda number: shutil.rmtree(source.path) if number == 4 else None)
    with pytest.raises((GitFailed, FileNotFoundError)):
        copied(source, tmp_path)
    assert list((tmp_path / "b").glob(".headrace/*/*")) == []


def test_many_files_are_synced_by_file_system(source: Copy, tmp_path: Path) -> None:
    write(source.path / "lfs/x")
    assert is_whole(copied(source, tmp_path, synced_one_by_one=5).path)


def test_copy_that_takes_too_long_fails(source: Copy, tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match="the copy took longer than clone_seconds"):
        result(copy(source, Root(tmp_path / "b"), seconds=-1.0))
