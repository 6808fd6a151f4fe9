"""A view has only some of a repository's settings, and git writes through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.repositories.git import GitFailed, git
from consumers.repositories.storage import Copy, Root
from consumers.repositories.views import promising_view, view
from tests.consumers.gitserver.kinds.registry import configure
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import git as as_application
from tests.consumers.gitservers import make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Copy:
    made = Root(tmp_path).copy("host/name")
    make_repository(made.path)
    return made


def listed(repository: Copy) -> list[str]:
    opened = result(view(repository))
    try:
        return result(git("config", "--local", "--list", at=opened)).decode().split("\n")[:-1]
    finally:
        opened.close()


def test_view_has_only_the_storage_settings(repository: Copy) -> None:
    assert listed(repository) == ["core.bare=true"]
    configure(repository.path, '[alias]\n\tx = "!y"\n[extensions]\n\tworktreeConfig = true\n\tpartialClone = origin\n')
    configure(repository.path, "\tnoop = 1\n[core]\n\tsharedRepository = group\n\thooksPath = /hooks\n")
    assert listed(repository) == [
        "core.bare=true",
        "core.repositoryformatversion=0",
        "extensions.noop=1",
        "core.sharedrepository=group",
    ]


def test_unknown_extension_is_refused_by_git(repository: Copy) -> None:
    configure(repository.path, '[core]\n\trepositoryFormatVersion = 1\n[extensions]\n\ttomorrow = "a\\"b"\n')
    opened = result(view(repository))
    with pytest.raises(GitFailed, match="unknown repository extension found: tomorrow"):
        result(git("for-each-ref", at=opened))
    opened.close()


def test_git_writes_through_a_view_into_the_repository(repository: Copy) -> None:
    as_application(repository.path, "pack-refs", "--all")
    value = as_application(repository.path, "rev-parse", "main")
    opened = result(view(repository))
    result(git("update-ref", "refs/heads/deep/er", value, at=opened))
    result(git("update-ref", "-d", "refs/heads/main", at=opened))
    opened.close()
    names = as_application(repository.path, "for-each-ref", "--format=%(refname)")
    assert names == "refs/heads/deep/er"
    assert not (repository.path / "packed-refs").is_symlink()
    assert list(repository.root.path.glob(".headrace/*/*")) == []


def test_only_a_partial_clone_may_lack_objects(repository: Copy) -> None:
    assert "partialClone" not in (result(promising_view(repository)).path / "config").read_text()
    as_application(repository.path, "repack", "-adq")
    (pack,) = repository.path.glob("objects/pack/*.pack")
    pack.with_suffix(".promisor").touch()
    assert "partialClone" in (result(promising_view(repository)).path / "config").read_text()
