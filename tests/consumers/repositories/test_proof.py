"""Distinguishes damage from objects that git merely warns about."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.repositories.git import GitFailed
from consumers.repositories.proof import prove
from consumers.repositories.storage import Copy, Root
from tests.consumers.gitserver.kinds.whole import loosen
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import git, make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Copy:
    made = Root(tmp_path).copy("host/name")
    make_repository(made.path)
    return made


def test_object_that_git_warns_about_is_not_damage(repository: Copy) -> None:
    tree = git(repository.path, "rev-parse", "main^{tree}")
    old = f"tree {tree}\nauthor Somebody 0 +0000\ncommitter Somebody 0 +0000\n\nx\n"
    commit = git(repository.path, "hash-object", "--literally", "-t", "commit", "-w", "--stdin", given=old.encode())
    git(repository.path, "update-ref", "refs/heads/old", commit)
    result(prove(repository, seconds=60, content=True))


def test_content_that_does_not_match_its_name_is_damage(repository: Copy) -> None:
    loosen(repository.path)
    blob = git(repository.path, "rev-parse", "main:file")
    other = git(repository.path, "hash-object", "-w", "--stdin", given=b"another\n")
    path = repository.path / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes((repository.path / "objects" / other[:2] / other[2:]).read_bytes())
    with pytest.raises(GitFailed, match="it is not complete"):
        result(prove(repository, seconds=60, content=True))


def test_missing_object_is_reported(repository: Copy) -> None:
    loosen(repository.path)
    blob = git(repository.path, "rev-parse", "main:file")
    (repository.path / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(GitFailed, match=f"it is not complete: missing blob {blob}"):
        result(prove(repository, seconds=60))
