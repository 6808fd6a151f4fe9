"""Carries over from an old copy to the new one: no change is lost, and no configuration takes effect."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.repositories import carry_over
from consumers.repositories.carry_over import KEPT_FILES, carry, keep_up
from consumers.repositories.clone import copy
from consumers.repositories.git import GitFailed, Steps
from consumers.repositories.proof import is_untouched, prove
from consumers.repositories.refs import KEPT, read_refs
from consumers.repositories.storage import Copy, Root
from tests.consumers.gitserver.kinds.hostile import another_address_for_the_roots, commands, mark
from tests.consumers.gitserver.kinds.registry import configure, inventory, write
from tests.consumers.gitserver.kinds.whole import commit, loosen
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import git, is_whole, make_repository, push

Pair = tuple[Copy, Copy]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Pair]:
    """Creates a repository at one root and copies it to another, as a move does."""

    def make(*prepare: Callable[[Path], object]) -> Pair:
        roots = [Root(tmp_path / "disks" / each) for each in ("a", "b")]
        for root in roots:
            root.path.mkdir(parents=True)
        old, new = (root.copy("host/name") for root in roots)
        make_repository(old.path)
        for each in prepare:
            each(old.path)
        made = result(copy(old, roots[1], seconds=60))
        roots[1].install(made.path, "host/name", old.path)
        return old, new

    return make


def carried(old: Copy, new: Copy) -> list[str]:
    """Carry over; return the remarks."""
    remarks: list[str] = []
    result(carry(old, new, seconds=60, tell=remarks.append))
    return remarks


def test_all_objects_are_carried_over_even_unreachable_ones(pair: Callable[..., Pair]) -> None:
    old, new = pair()
    pushed = push(old.path, "next", "next")
    unreachable = commit(old.path, "no ref leads to it")
    git(old.path, "update-ref", "--no-deref", "HEAD", commit(old.path, "only HEAD has it"))
    write(old.path / "worktrees/w1/HEAD", commit(old.path, "of a worktree") + "\n")
    write(old.path / "worktrees/w1/gitdir", "/nowhere/.git\n")
    write(old.path / "lfs/objects/aa/bb/x", "later", 0o444)
    (old.path / "refs/heads/dangling").write_text("ref: refs/heads/gone\n")
    configure(old.path, "[new]\n\tsetting = 1\n")

    assert carried(old, new) == []

    assert inventory(new.path)["refs"] == inventory(old.path)["refs"]
    assert inventory(old.path)["objects"] <= inventory(new.path)["objects"]
    assert git(new.path, "rev-parse", "refs/heads/next") == pushed
    assert git(new.path, "cat-file", "-t", unreachable) == "commit"
    old_files = inventory(old.path)["files"]
    assert {path: each for path, each in inventory(new.path)["files"].items() if path in old_files} == old_files
    result(prove(new, seconds=60))


def test_changes_of_the_new_copy_are_kept(pair: Callable[..., Pair]) -> None:
    old, new = pair()
    ours, theirs = push(new.path, "main", "new"), push(old.path, "main", "old")
    directory, file = push(new.path, "topic/one", "new"), push(old.path, "topic", "old")
    git(new.path, "tag", "here", "main")
    write(new.path / "description", "of the new\n")
    write(old.path / "description", "of the old\n")
    write(new.path / "sg_refhash", "new\n")

    remarks = carried(old, new)

    assert git(new.path, "rev-parse", "main", "here", "topic/one").split() == [ours, ours, directory]
    kept_refs = (f"{KEPT}{theirs}/heads/main", f"{KEPT}{file}/heads/topic")
    assert git(new.path, "rev-parse", *kept_refs).split() == [theirs, file]
    assert (new.path / "description").read_text() == "of the new\n"
    (kept,) = (new.path / KEPT_FILES).glob("*/description")
    assert kept.read_text() == "of the old\n"
    assert [each.partition(":")[0] for each in remarks] == ["both copies were written to"] * 2
    assert carried(old, new) == []


def test_detached_head_changed_at_both_copies_is_kept_as_a_ref(pair: Callable[..., Pair]) -> None:
    old, new = pair()
    theirs = commit(old.path, "only the old HEAD has it")
    git(old.path, "update-ref", "--no-deref", "HEAD", theirs)
    git(new.path, "symbolic-ref", "HEAD", "refs/heads/other")
    carried(old, new)
    assert (new.path / "HEAD").read_text() == "ref: refs/heads/other\n"
    assert git(new.path, "rev-parse", f"{KEPT}{theirs}/HEAD") == theirs


def test_deleted_ref_is_deleted_and_stays_deleted_at_the_new_copy(
    pair: Callable[..., Pair],
) -> None:
    old, new = pair(lambda place: [push(place, name, name) for name in ("one", "two")])
    git(old.path, "update-ref", "-d", "refs/heads/one")
    git(new.path, "update-ref", "-d", "refs/heads/two")
    push(old.path, "three", "three")
    carried(old, new)
    assert git(new.path, "for-each-ref", "--format=%(refname:short)").split() == ["main", "three"]


@pytest.mark.parametrize("gone", ["packed-refs", "config", "HEAD", "refs"])
def test_removal_of_the_old_copy_in_progress_deletes_nothing(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(carry_over, "_SURE_SECONDS", 0.0)
    old, new = pair(lambda place: push(place, "next", "next"), lambda place: git(place, "pack-refs", "--all"))
    before = inventory(new.path)
    path = old.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((GitFailed, FileNotFoundError)):
        carried(old, new)
    assert inventory(new.path) == before


def test_file_removed_from_the_old_copy_stays_at_the_new_one(pair: Callable[..., Pair]) -> None:
    old, new = pair(lambda place: write(place / "lfs/objects/x"), lambda place: write(place / "shallow", ""))
    shutil.rmtree(old.path / "lfs")
    (old.path / "shallow").unlink()
    carried(old, new)
    assert (new.path / "lfs/objects/x").exists()
    assert not (new.path / "shallow").exists()


def test_repacked_objects_are_not_copied_again(pair: Callable[..., Pair]) -> None:
    old, new = pair()
    git(old.path, "repack", "-adq")
    assert carried(old, new) == []
    assert list(new.path.glob("objects/pack/*")) == []
    git(new.path, "repack", "-adq")
    git(new.path, "prune-packed")
    before = inventory(new.path)
    carried(old, new)
    assert inventory(new.path) == before


def test_objects_lost_by_the_new_copy_are_restored(pair: Callable[..., Pair]) -> None:
    old, new = pair()
    result(prove(new, seconds=60))
    loosen(new.path)
    blob = git(old.path, "rev-parse", "main:file")
    path = new.path / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes(b"")
    carried(old, new)
    result(prove(new, seconds=60, content=True))
    assert is_whole(new.path)


def test_settings_of_either_copy_have_no_effect(pair: Callable[..., Pair]) -> None:
    old, new = pair(
        commands,
        another_address_for_the_roots,
        lambda place: configure(place, "[fetch]\n\tprune = true\n\tpruneTags = true\n"),
        lambda place: configure(place, "[core]\n\tlogAllRefUpdates = always\n"),
    )
    git(new.path, "-c", "core.hooksPath=/dev/null", "update-ref", "refs/tags/here", "refs/heads/main")
    push_safely(old, "late")
    assert carried(old, new) == []
    names = set(result(read_refs(new)))
    assert {"refs/tags/here", "refs/heads/late"} <= names
    assert not mark(old.path).exists()


def push_safely(copy: Copy, branch: str) -> None:
    """Push without the hooks of a hostile repository."""
    git(copy.path, "-c", "core.hooksPath=/dev/null", "update-ref", f"refs/heads/{branch}", "refs/heads/main")


def test_symbolic_link_of_the_new_copy_writes_nothing_outside(pair: Callable[..., Pair], tmp_path: Path) -> None:
    old, new = pair(lambda place: write(place / "custom/file", "before"))
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(new.path / "custom")
    (new.path / "custom").symlink_to(outside)
    write(old.path / "custom/file", "later")
    write(old.path / "custom/other", "later")
    carried(old, new)
    assert list(outside.iterdir()) == []
    assert len(list((new.path / KEPT_FILES).glob("*/custom/*"))) == 2


def test_copy_is_untouched_until_written_to(pair: Callable[..., Pair]) -> None:
    _, new = pair()
    assert result(is_untouched(new))
    push(new.path, "main", "more")
    assert not result(is_untouched(new))


def test_git_runs_as_the_owner_and_creates_files_of_the_owner(pair: Callable[..., Pair], tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o011 == 0:
            parent.chmod(0o711)

    def give_away(place: Path) -> None:
        for directory, _, names in os.walk(place.parent):
            for path in (directory, *(os.path.join(directory, name) for name in names)):
                os.chown(path, 12_345, 54_321)

    old, new = pair(give_away)
    push(old.path, "a/late", "late")
    give_away(old.path)
    git(old.path, "symbolic-ref", "HEAD", "refs/heads/a/late")
    carried(old, new)
    assert git(new.path, "rev-parse", "a/late") == git(old.path, "rev-parse", "a/late")
    for directory, _, names in os.walk(new.path.parent):
        for path in (directory, *(os.path.join(directory, name) for name in names if name != "headrace-moving")):
            assert os.lstat(path).st_uid == 12_345, path


def _settled(repository: Path) -> None:
    """Let all writes be older than one tick of the file system's clock."""
    for directory, _, names in os.walk(repository):
        for name in names:
            os.utime(os.path.join(directory, name), (1, 1), follow_symlinks=False)


CHANGES: dict[str, Callable[[Copy, Copy], object]] = {
    "a push to the old copy": lambda old, _: push(old.path, "main", "late"),
    "a branch that is set back": lambda old, _: git(old.path, "update-ref", "refs/heads/main", "refs/heads/main~1"),
    "a deletion": lambda old, _: git(old.path, "update-ref", "-d", "refs/heads/next"),
    "another HEAD": lambda old, _: git(old.path, "symbolic-ref", "HEAD", "refs/heads/next"),
    "an object that nothing leads to": lambda old, _: commit(old.path, "nothing leads to it"),
    "packed refs": lambda old, _: git(old.path, "pack-refs", "--all"),
    "a file": lambda old, _: write(old.path / "lfs/objects/aa/bb/x", "later"),
    "a setting": lambda old, _: configure(old.path, "[new]\n\tsetting = 1\n"),
    "a mode": lambda old, _: (old.path / "config").chmod(0o600),
    "a push to the new copy": lambda _, new: push(new.path, "new", "new"),
    "an object that the new copy lost": lambda _, new: shutil.rmtree(next(new.path.glob("objects/??"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_keep_up_carries_over_any_change_and_runs_nothing_without_one(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def two_branches(place: Path) -> None:
        push(place, "main", "second")
        push(place, "next", "next")
        loosen(place)
        _settled(place)

    old, new = pair(two_branches)
    looked = []
    original = carry_over._carry

    def look(source: Copy, *given: Any) -> Steps[None]:
        looked.append(source)
        yield from original(source, *given)

    monkeypatch.setattr(carry_over, "_carry", look)
    result(keep_up(old, new, seconds=60, tell=print))
    assert looked == []
    CHANGES[change](old, new)
    result(keep_up(old, new, seconds=60, tell=print))
    assert looked == [old]
    if "new copy" not in change:
        assert inventory(new.path)["refs"] == inventory(old.path)["refs"]
    assert inventory(old.path)["objects"] <= inventory(new.path)["objects"]
