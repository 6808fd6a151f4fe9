"""The walk of a storage's directory: each rule of Gitaly's walk is a test."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from producers.walk.directory import Repository, StorageUnreadable, Unread, walk_directory
from schemas.errors import Unavailable
from tests.producers.storages import MARKS, drop_rights, hashed, marked, repository, without_rights


def walked(storage: Path) -> list[str]:
    """Return the paths found, all of which must be repositories."""
    found = list(walk_directory(str(storage)))
    assert all(isinstance(each, Repository) for each in found), found
    return [each.path.decode() for each in found]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_directory_with_objects_refs_and_head_is_a_repository(tmp_path: Path) -> None:
    repository(tmp_path, hashed(1))
    assert walked(tmp_path) == [hashed(1)]


@pytest.mark.parametrize("missing", MARKS)
def test_directory_without_one_of_them_is_not(tmp_path: Path, missing: str) -> None:
    directory = repository(marked(tmp_path), "a.git") / missing
    directory.rmdir() if directory.is_dir() else directory.unlink()
    assert walked(tmp_path) == []


def test_no_descent_into_a_repository(tmp_path: Path) -> None:
    repository(tmp_path, "a.git")
    repository(tmp_path, "a.git/objects/inside.git")
    assert walked(tmp_path) == ["a.git"]


def test_directory_that_only_looks_like_a_repository_is_descended_into(tmp_path: Path) -> None:
    repository(tmp_path, "a/objects/b.git")
    assert walked(tmp_path) == ["a/objects/b.git"]


def test_files_and_empty_directories_are_ignored(tmp_path: Path) -> None:
    (marked(tmp_path) / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "HEAD").write_text("")
    assert walked(tmp_path) == []


def test_lexicographic_by_component_as_go_walks(tmp_path: Path) -> None:
    # As whole strings `a-b` would sort before `a/z`, since a dash sorts before a slash.
    paths = ["B", "a/c", "a/z", "a-b", "a.git", "aa", "ä", "ü/x"]
    for path in reversed(paths):
        repository(tmp_path, path)
    assert walked(tmp_path) == paths


def test_gitaly_directory_is_skipped_only_at_the_top(tmp_path: Path) -> None:
    for path in ("+gitaly/tmp/a.git", "b/+gitaly/c.git", "+gitaly2/d.git"):
        repository(tmp_path, path)
    assert walked(tmp_path) == ["+gitaly2/d.git", "b/+gitaly/c.git"]


def test_pools_snippets_and_wikis_count(tmp_path: Path) -> None:
    wiki = hashed(1).removesuffix(".git") + ".wiki.git"
    paths = sorted([hashed(1), wiki, "@pools/aa/bb/c.git", "@snippets/aa/bb/d.git", "@cluster/repositories/aa/bb/7"])
    for path in paths:
        repository(tmp_path, path)
    assert sorted(walked(tmp_path)) == paths


def test_modification_time_is_the_directorys(tmp_path: Path) -> None:
    os.utime(repository(tmp_path, "a.git"), ns=(0, 1_700_000_000_123_456_789))
    assert list(walk_directory(str(tmp_path))) == [Repository(b"a.git", 1_700_000_000_123_456)]


def test_symbolic_link_is_never_followed(tmp_path: Path) -> None:
    storage, outside = tmp_path / "storage", tmp_path / "outside"
    repository(outside, "secret.git")
    repository(storage, "a.git")
    (storage / "way-out").symlink_to(outside)
    (storage / "linked.git").symlink_to(storage / "a.git")
    (storage / "loop").mkdir()
    (storage / "loop" / "up").symlink_to(storage)
    (storage / "loop" / "self").symlink_to("self")
    assert walked(storage) == ["a.git"]


def test_storage_itself_may_be_a_link(tmp_path: Path) -> None:
    repository(tmp_path / "disk", "a.git")
    (tmp_path / "storage").symlink_to("disk")
    assert walked(tmp_path / "storage") == ["a.git"]


def test_directory_that_becomes_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    repository(tmp_path / "outside", "secret.git")
    storage = tmp_path / "storage"
    for path in ("a.git", "b/c.git", "d.git"):
        repository(storage, path)
    walk = walk_directory(str(storage))
    assert next(walk).path == b"a.git"
    shutil.rmtree(storage / "b")
    (storage / "b").symlink_to(tmp_path / "outside")
    assert [each.path for each in walk] == [b"d.git"]


def test_vanished_directory_is_not_an_error(tmp_path: Path) -> None:
    for path in ("a.git", "b/c.git", "d/e.git", "f.git"):
        repository(tmp_path, path)
    walk = walk_directory(str(tmp_path))
    assert next(walk).path == b"a.git"
    shutil.rmtree(tmp_path / "b")
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "d").write_text("a file now")
    assert [each.path for each in walk] == [b"f.git"]


def test_directory_that_vanishes_while_it_is_read_is_not_an_error(tmp_path: Path) -> None:
    repository(tmp_path, "a/b.git")
    repository(tmp_path, "c.git")
    assert [each.path for each in walk_directory(str(tmp_path), FailsIn("a", errno.ENOENT))] == [b"c.git"]


def test_unreadable_directory_is_reported_by_name_and_the_walk_continues() -> None:
    with without_rights() as storage:
        for path in ("a.git", "closed/b.git", "d.git"):
            repository(storage, path)
        (storage / "closed").chmod(0)
        drop_rights()
        found = list(walk_directory(str(storage)))
    assert [each.path for each in found] == [b"a.git", b"closed", b"d.git"]
    assert found[1] == Unread(b"closed", "Permission denied")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_directory_with_an_io_error_is_reported(tmp_path: Path, code: int) -> None:
    repository(tmp_path, "a/b/c.git")
    repository(tmp_path, "a/d.git")
    found = list(walk_directory(str(tmp_path), FailsIn("b", code)))
    assert found[0] == Unread(b"a/b", os.strerror(code))
    assert [each.path for each in found[1:]] == [b"a/d.git"]


def test_names_of_any_bytes_are_unchanged(tmp_path: Path) -> None:
    names = [b"a\nb.git", b'it\'s "quoted".git', b"\xff\xfe.git", "é.git".encode(), b"\\xff.git", b"-rf.git"]
    for name in names:
        repository(tmp_path, name)
    assert [each.path for each in walk_directory(str(tmp_path))] == sorted(names)


def test_path_longer_than_path_max_is_walked(tmp_path: Path) -> None:
    part, depth = "d" * 200, 30
    # Made from within: the whole path is longer than PATH_MAX.
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir(part)
            os.chdir(part)
        repository(Path("."), "a.git")
    finally:
        os.fchdir(before)
        os.close(before)
    assert walked(tmp_path) == ["/".join([part] * depth + ["a.git"])]


def test_missing_storage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreadable, match=r"storage .*/missing cannot be read: No such file") as caught:
        list(walk_directory(str(tmp_path / "missing")))
    assert isinstance(caught.value, Unavailable)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnreadable, match="Not a directory"):
        list(walk_directory(str(tmp_path / "file")))


@pytest.mark.parametrize("directories", ["", "lost+found", "@hashed/aa/bb"])
def test_empty_storage_without_gitaly_metadata_is_an_error(tmp_path: Path, directories: str) -> None:
    (tmp_path / directories).mkdir(parents=True, exist_ok=True)
    with pytest.raises(
        StorageUnreadable, match=r"neither a repository nor \.gitaly-metadata.*check that it is mounted"
    ):
        list(walk_directory(str(tmp_path)))
    assert walked(marked(tmp_path)) == []


def test_storage_with_repositories_needs_no_mark(tmp_path: Path) -> None:
    repository(tmp_path, "a.git")
    assert walked(tmp_path) == ["a.git"]


def test_storage_that_is_itself_a_repository_is_an_error(tmp_path: Path) -> None:
    repository(tmp_path, "a.git")
    with pytest.raises(StorageUnreadable, match="is itself a repository; set the path to the directory above"):
        list(walk_directory(str(tmp_path / "a.git")))


def test_storage_that_is_unmounted_during_the_walk_is_an_error(tmp_path: Path) -> None:
    for path in ("a.git", "b.git"):
        repository(tmp_path / "storage", path)
    walk = walk_directory(str(tmp_path / "storage"))
    assert next(walk).path == b"a.git"
    shutil.rmtree(tmp_path / "storage")
    with pytest.raises(StorageUnreadable):
        list(walk)
    walk = walk_directory(str(tmp_path))
    repository(tmp_path, "c.git")
    assert next(walk).path == b"c.git"
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    tmp_path.mkdir()
    with pytest.raises(StorageUnreadable, match="was replaced while it was walked"):
        list(walk)


def test_no_file_stays_open(tmp_path: Path) -> None:
    for path in ("a/b/c.git", "a/d.git", "e.git"):
        repository(tmp_path, path)
    before = open_files()
    walked(tmp_path)
    assert open_files() == before
    half = walk_directory(str(tmp_path))
    next(half)
    half.close()
    with pytest.raises(StorageUnreadable):
        list(walk_directory(str(tmp_path), FailsIn(tmp_path.name, errno.EIO)))
    assert open_files() == before


class FailsIn:
    """Reads directories, except the one of this name, which fails with an error."""

    def __init__(self, name: str, code: int) -> None:
        self._name = name
        self._code = code

    @contextmanager
    def __call__(self, descriptor: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == self._name:
            raise OSError(self._code, os.strerror(self._code))
        with os.scandir(descriptor) as entries:
            yield entries
