"""Repositories that are moved, each with content that is easily lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from pathlib import Path

from tests.consumers.gitserver.kinds.registry import configure, from_scratch, kind, write
from tests.consumers.gitservers import git, make_repository, push

_IDENTITY = ("-c", "user.name=T", "-c", "user.email=t@example.org")


def commit(place: Path, text: str, *parents: str) -> str:
    """Create a commit that no ref leads to."""
    tree = git(place, "rev-parse", "refs/heads/main^{tree}")
    return git(place, *_IDENTITY, "commit-tree", tree, "-m", text, *(part for each in parents for part in ("-p", each)))


def loosen(place: Path) -> None:
    """Turn a repository's packs into loose objects."""
    for pack in list(place.glob("objects/pack/*.pack")):
        data = pack.read_bytes()
        for path in pack.parent.glob(f"{pack.stem}.*"):
            path.unlink()
        git(place, "unpack-objects", "-q", given=data)


@kind()
def plain(place: Path) -> None:
    pass


@from_scratch()
def empty(place: Path) -> None:
    make_repository(place, branches=())


@kind()
def many_branches(place: Path) -> None:
    for number in range(20):
        push(place, f"topic/{number}", str(number))


@kind()
def packed_refs(place: Path) -> None:
    push(place, "next", "next")
    git(place, "pack-refs", "--all")


@kind()
def packed_refs_that_loose_ones_outdate(place: Path) -> None:
    git(place, "pack-refs", "--all")
    push(place, "main", "later")


@kind()
def thousands_of_refs(place: Path) -> None:
    value = git(place, "rev-parse", "refs/heads/main")
    lines = "".join(f"create refs/changes/{number % 100:02}/{number} {value}\n" for number in range(2_000))
    git(place, "update-ref", "--stdin", given=lines.encode())
    git(place, "pack-refs", "--all")


@kind()
def annotated_tags_of_all_types(place: Path) -> None:
    for name, what in (("commit", "main"), ("tree", "main^{tree}"), ("blob", "main:file")):
        git(place, *_IDENTITY, "tag", "-a", "-m", name, f"of-{name}", what)
    git(place, *_IDENTITY, "tag", "-a", "-m", "tag", "of-tag", "of-commit")


@kind()
def refs_outside_of_branches_and_tags(place: Path) -> None:
    for name in ("pull/1/head", "keep-around/abc", "merge-requests/7/merge", "environments/x", "custom"):
        git(place, "update-ref", f"refs/{name}", commit(place, name))


@kind()
def odd_ref_names(place: Path) -> None:
    for name in ("a b".replace(" ", "\u00a0"), "ünïcode/ﬀ", "with.dot", "-dash", "x" * 200, "a\udcffb", "d/e/e/p/e/r"):
        git(place, "update-ref", f"refs/heads/{name}", "refs/heads/main")


@kind()
def notes_stash_and_replacement(place: Path) -> None:
    git(place, *_IDENTITY, "notes", "add", "-m", "note", "main")
    git(place, "update-ref", "refs/replace/" + git(place, "rev-parse", "main"), commit(place, "replacement"))
    for number in range(3):
        git(place, *_IDENTITY, "update-ref", "--create-reflog", "-m", "s", "refs/stash", commit(place, f"s{number}"))


@kind()
def reflogs_with_commits_of_their_own(place: Path) -> None:
    configure(place, "[core]\n\tlogAllRefUpdates = always\n")
    for number in range(3):
        git(place, *_IDENTITY, "update-ref", "refs/heads/forced", commit(place, f"forced {number}"))


@kind()
def symbolic_refs(place: Path) -> None:
    git(place, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/heads/main")
    git(place, "symbolic-ref", "refs/remotes/origin/chain", "refs/remotes/origin/HEAD")


@kind()
def symbolic_ref_that_dangles(place: Path) -> None:
    write(place / "refs/remotes/origin/HEAD", "ref: refs/remotes/origin/gone\n")


@kind()
def head_detached_at_a_branch(place: Path) -> None:
    git(place, "update-ref", "--no-deref", "HEAD", "refs/heads/main")


@kind()
def head_detached_at_a_commit_of_its_own(place: Path) -> None:
    git(place, "update-ref", "--no-deref", "HEAD", commit(place, "only HEAD has it"))


@kind()
def head_is_a_symbolic_link(place: Path) -> None:
    (place / "HEAD").unlink()
    (place / "HEAD").symlink_to("refs/heads/main")


@kind()
def head_is_a_symbolic_link_to_a_packed_branch(place: Path) -> None:
    head_is_a_symbolic_link(place)
    git(place, "pack-refs", "--all")


@kind()
def head_at_a_branch_that_is_not_there(place: Path) -> None:
    git(place, "symbolic-ref", "HEAD", "refs/heads/elsewhere/unborn")


@from_scratch()
def sha256(place: Path) -> None:
    make_repository(place, object_format="sha256")


@kind()
def version_1_with_extensions(place: Path) -> None:
    git(place, "config", "core.repositoryFormatVersion", "1")
    for name in ("noop", "preciousObjects", "worktreeConfig"):
        git(place, "config", f"extensions.{name}", "true")
    write(place / "config.worktree", "[core]\n\tsparseCheckout = true\n")
    configure(place, "[sourcegraph]\n\ttype = perforce\n")


@kind()
def shallow(place: Path) -> None:
    first = push(place, "main", "later")
    write(place / "shallow", f"{first}\n")
    git(place, "reflog", "expire", "--expire=now", "--all")
    git(place, "repack", "-adq")


@kind()
def partial(place: Path) -> None:
    push(place, "main", "later")
    blob = git(place, "rev-parse", "main:file")
    git(place, "config", "core.repositoryFormatVersion", "1")
    configure(
        place,
        '[extensions]\n\tpartialClone = origin\n[remote "origin"]\n\turl = /nowhere\n\tpromisor = true\n'
        "\tpartialclonefilter = blob:none\n",
    )
    git(place, "config", "--unset", "extensions.partialClone")
    loosen(place)
    wanted = [line.split()[0] for line in git(place, "rev-list", "--objects", "--all").splitlines()]
    name = git(
        place, "pack-objects", "-q", str(place / "objects/pack/pack"),
        given="".join(f"{one}\n" for one in wanted if one != blob).encode(),
    )  # fmt: skip
    git(place, "config", "extensions.partialClone", "origin")
    write(place / f"objects/pack/pack-{name}.promisor", "")
    for directory in place.glob("objects/??"):
        shutil.rmtree(directory)


@kind()
def loose_objects(place: Path) -> None:
    loosen(place)


@kind()
def many_packs_with_all_that_git_derives(place: Path) -> None:
    for number in range(3):
        push(place, "main", f"{number}")
        git(place, "repack", "-dq")
    git(place, "multi-pack-index", "write")
    git(place, "commit-graph", "write", "--reachable", "--split")
    git(place, "update-server-info")


@kind()
def a_bitmap_and_a_kept_pack(place: Path) -> None:
    git(place, "repack", "-adbq")
    (pack,) = place.glob("objects/pack/*.pack")
    write(pack.with_suffix(".keep"), "")
    push(place, "main", "later")


@kind()
def unreachable_objects(place: Path) -> None:
    commit(place, "nothing leads to it")
    loosen(place)
    commit(place, "nor to this")
    git(place, "repack", "--cruft", "-dq")


@kind()
def a_large_blob(place: Path) -> None:
    blob = git(place, "hash-object", "-w", "--stdin", given=os.urandom(3_000_000))
    git(place, "update-ref", "refs/blobs/large", blob)


@kind()
def settings_with_credentials(place: Path) -> None:
    configure(
        place, '# a comment\n[remote "origin"]\n\turl = https://user:secret@example.org/x\n\tfetch = +refs/*:refs/*\n'
    )
    (place / "config").chmod(0o600)


@kind()
def files_beside_gits_own(place: Path) -> None:
    for name in ("description", "sg_refhash", "info/exclude", "info/attributes", ".hidden", "FETCH_HEAD", "cloneurl"):
        write(place / name, f"{name}\n")
    write(Path(os.fsdecode(os.fsencode(place) + b"/not \xff utf-8")))
    (place / "branches").mkdir()


@kind()
def executable_hooks(place: Path) -> None:
    write(place / "hooks/post-receive", "#!/bin/sh\nexit 1\n", 0o755)
    write(place / "custom_hooks/pre-receive.d/one", "#!/bin/sh\nexit 1\n", 0o700)
    write(place / "hooks/reference-transaction", "#!/bin/sh\nexit 1\n", 0o755)


@kind()
def shared_with_a_group(place: Path) -> None:
    git(place, "config", "core.sharedRepository", "group")
    for directory, _, names in os.walk(place):
        os.chmod(directory, 0o2775)
        for name in names:
            path = Path(directory, name)
            path.chmod(path.stat().st_mode | 0o060)


@kind()
def closed_directories(place: Path) -> None:
    write(place / "private/key", "secret\n", 0o400)
    (place / "private").chmod(0o500)


@kind()
def another_owner(place: Path) -> None:
    if os.geteuid() == 0:
        for directory, _, names in os.walk(place):
            for path in (directory, *(os.path.join(directory, name) for name in names)):
                os.chown(path, 12_345, 54_321)


@kind()
def extended_attributes(place: Path) -> None:
    write(place / "noted")
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            os.setxattr(place / "noted", "user.origin", b"elsewhere")


@kind()
def access_lists(place: Path) -> None:
    noted = write(place / "noted")
    if hasattr(os, "setxattr"):
        # Version 2; the owner may all, user 12345 read, the owner's group read, at most read, all others nothing.
        entries = ((1, 6, -1), (2, 4, 12_345), (4, 4, -1), (16, 4, -1), (32, 0, -1))
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)
        with contextlib.suppress(OSError):
            os.setxattr(noted, "system.posix_acl_access", value)


@kind()
def lfs(place: Path) -> None:
    for number in range(3):
        write(place / f"lfs/objects/aa/b{number}/aab{number}", os.urandom(1_000), 0o444)
    write(place / "lfs/cache/locks/refs/heads/main/verifiable.lock")
    (place / "lfs/tmp").mkdir()


@kind()
def annex(place: Path) -> None:
    key = write(place / "annex/objects/f87/4d5/SHA256E-s3--x/SHA256E-s3--x", "abc", 0o444)
    key.parent.chmod(0o555)
    (place / "annex/link").symlink_to("objects/f87")


@kind()
def svn(place: Path) -> None:
    write(place / "svn/refs/remotes/trunk/.rev_map.0c7b", os.urandom(240))
    write(place / "svn/.metadata", '[svn-remote "svn"]\n')


@kind()
def modules(place: Path) -> None:
    make_repository(place / "modules/vendor/lib")
    make_repository(place / "modules/vendor/empty", branches=())


@kind()
def a_commit_that_only_a_linked_worktree_has(place: Path) -> None:
    worktree = place / "worktrees/w1"
    write(worktree / "HEAD", commit(place, "of the worktree") + "\n")
    write(worktree / "commondir", "../..\n")
    write(worktree / "gitdir", "/nowhere/at/all/.git\n")
    write(worktree / "locked", "")


@kind()
def a_symbolic_link_within(place: Path) -> None:
    write(place / "custom/real")
    (place / "custom/link").symlink_to("real")
    (place / "custom/dangles").symlink_to("nothing")
    (place / "custom/absolute").symlink_to("/etc/hostname")


@kind()
def a_large_file_beside_it(place: Path) -> None:
    with (place / "dump").open("wb") as file:
        file.truncate(20_000_000)


@kind()
def the_remains_of_killed_processes(place: Path) -> None:
    write(place / "objects/pack/tmp_pack_abc", os.urandom(100))
    write(place / "objects/tmp_obj_abc")
    write(place / "gc.pid", "1 elsewhere")
    write(place / "packed-refs.lock")
    write(place / "refs/heads/main.lock")
    for path in (*place.glob("*.lock"), *place.glob("refs/heads/*.lock")):
        os.utime(path, (1, 1))
