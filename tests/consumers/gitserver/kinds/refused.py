"""Repositories that are refused by name and left unchanged."""

from __future__ import annotations

import os
from pathlib import Path

from tests.consumers.gitserver.kinds.registry import configure, kind, write
from tests.consumers.gitserver.kinds.whole import loosen
from tests.consumers.gitservers import git, make_repository


@kind("extension")
def an_extension_that_this_git_does_not_know(place: Path) -> None:
    configure(place, "[core]\n\trepositoryFormatVersion = 1\n[extensions]\n\ttomorrow = true\n")


@kind("missing blob")
def an_object_is_missing(place: Path) -> None:
    blob = git(place, "rev-parse", "main:file")
    loosen(place)
    (place / "objects" / blob[:2] / blob[2:]).unlink()


@kind("git: ")
def an_object_file_is_empty(place: Path) -> None:
    blob = git(place, "rev-parse", "main:file")
    loosen(place)
    path = place / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes(b"")


@kind("git: ")
def a_pack_is_cut_off(place: Path) -> None:
    git(place, "repack", "-adq")
    (pack,) = place.glob("objects/pack/*.pack")
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes()[:-30])


@kind("git: ")
def a_ref_is_empty(place: Path) -> None:
    write(place / "refs/heads/broken", "")


@kind("git: ")
def a_ref_leads_to_nothing(place: Path) -> None:
    write(place / "refs/heads/broken", "1234567890" * 4 + "\n")


@kind("is not a repository")
def head_is_missing(place: Path) -> None:
    (place / "HEAD").unlink()


@kind("objects of another repository")
def it_borrows_objects(place: Path) -> None:
    lender = place.parent.with_name(f"{place.parent.name}-that-lends") / "bare"
    make_repository(lender)
    write(place / "objects/info/alternates", f"{lender}/objects\n")


@kind("other repositories use its objects")
def it_lends_objects(place: Path) -> None:
    borrower = place.parent.with_name(f"{place.parent.name}-that-borrows") / "fork.git"
    make_repository(borrower)
    write(borrower / "objects/info/alternates", os.path.relpath(place / "objects", borrower / "objects") + "\n")


@kind("other repositories use its objects")
def another_is_made_of_links_to_it(place: Path) -> None:
    other = place.parent.with_name(f"{place.parent.name}-of-links") / ".git"
    other.mkdir(parents=True)
    (other / "HEAD").write_text("ref: refs/heads/main\n")
    for name in ("objects", "refs", "config"):
        (other / name).symlink_to(place / name)


@kind("objects is a symbolic link")
def its_objects_are_elsewhere(place: Path) -> None:
    elsewhere = place.parent.with_name(f"{place.parent.name}-objects")
    (place / "objects").rename(elsewhere)
    (place / "objects").symlink_to(elsewhere)


@kind("points out of the repository")
def a_relative_link_leads_out_of_it(place: Path) -> None:
    (place / "hooks").symlink_to("../../hooks")


@kind("points to the old place")
def an_absolute_link_leads_back_to_it(place: Path) -> None:
    write(place / "custom/real")
    (place / "link").symlink_to(place / "custom/real")


@kind("is not a file")
def a_pipe(place: Path) -> None:
    os.mkfifo(place / "pipe")


@kind("working tree")
def a_linked_worktree_in_use(place: Path) -> None:
    tree = place.parent.with_name(f"{place.parent.name}-worktree")
    git(place, "worktree", "add", "--quiet", str(tree), "main")


@kind("working tree")
def a_working_tree_beside_it(place: Path) -> None:
    git(place, "config", "core.bare", "false")
    write(place.parent / "file")
