"""Repositories whose files would run commands or change git's behaviour during a move."""

from __future__ import annotations

from pathlib import Path

from tests.consumers.gitserver.kinds.registry import MARK, configure, kind, write
from tests.consumers.gitserver.kinds.whole import commit, loosen
from tests.consumers.gitservers import git, push


def mark(place: Path) -> Path:
    """Return the file that shows that a command of a repository ran."""
    disks = next(parent for parent in place.parents if parent.name == "disks")
    return disks.parent / MARK


def commands(place: Path) -> None:
    """Name a command wherever git would run one that a repository's config names."""
    command = f"touch {mark(place)}"
    hook = write(place / "hostile-hooks/reference-transaction", f"#!/bin/sh\n{command}\n", 0o755)
    for name in ("post-checkout", "pre-auto-gc", "post-index-change", "pre-receive", "update", "proc-receive"):
        write(hook.with_name(name), f"#!/bin/sh\n{command}\n", 0o755)
    configure(
        place,
        f"""[core]
	hooksPath = {hook.parent}
	fsmonitor = {command}
	sshCommand = {command}
	gitProxy = {command}
	askPass = {command}
	editor = {command}
	pager = {command}
	alternateRefsCommand = {command}
[uploadpack]
	packObjectsHook = {command}
[pager]
	for-each-ref = true
	rev-list = true
[alias]
	for-each-ref = "!{command}"
	fsck = "!{command}"
[credential]
	helper = "!{command}"
[filter "x"]
	clean = {command}
	smudge = {command}
	process = {command}
[diff]
	external = {command}
[gpg]
	program = {command}
[gc]
	auto = 1
""",
    )
    write(place / "info/attributes", "* filter=x diff=x\n")
    for name in ("reference-transaction", "post-checkout"):
        write(place / "hooks" / name, f"#!/bin/sh\n{command}\n", 0o755)


@kind()
def commands_wherever_git_takes_one(place: Path) -> None:
    commands(place)


@kind()
def another_address_for_the_roots(place: Path) -> None:
    roots = next(parent for parent in place.parents if parent.name == "disks")
    configure(
        place,
        f"""[url "ext::sh -c touch% {mark(place)}% "]
	insteadOf = {roots}
	insteadOf = /
[protocol]
	allow = always
[protocol "ext"]
	allow = always
""",
    )


@kind()
def an_address_that_leads_nowhere(place: Path) -> None:
    configure(place, '[url "/nowhere/"]\n\tinsteadOf = /\n\tpushInsteadOf = /\n[protocol "file"]\n\tallow = never\n')


@kind()
def it_prunes_when_it_fetches(place: Path) -> None:
    configure(
        place,
        '[fetch]\n\tprune = true\n\tpruneTags = true\n[remote "origin"]\n\tfetch = +refs/heads/x:refs/heads/main\n',
    )
    git(place, "tag", "v1", "main")


@kind()
def it_hides_its_refs(place: Path) -> None:
    configure(place, "[transfer]\n\thideRefs = refs\n[uploadpack]\n\thideRefs = refs\n\tallowAnySHA1InWant = false\n")
    push(place, "hidden", "hidden")


@kind()
def it_includes_what_is_not_there_and_what_is_no_config(place: Path) -> None:
    rubbish = write(place / "rubbish", "[[[\n")
    configure(place, f'[include]\n\tpath = /nowhere\n\tpath = {rubbish}\n[includeIf "gitdir:/"]\n\tpath = {rubbish}\n')


@kind()
def it_is_no_config_at_all(place: Path) -> None:
    configure(place, "[[[ = \n")


@kind("missing blob")
def it_says_that_nothing_is_wrong_with_it(place: Path) -> None:
    blob = git(place, "rev-parse", "main:file")
    skipped = write(place / "skipped", f"{blob}\n")
    configure(place, f"[fsck]\n\tskipList = {skipped}\n\tmissingBlob = ignore\n[core]\n\tpreferSymlinkRefs = true\n")
    _without(place, blob)


@kind("missing commit")
def it_would_fetch_what_is_missing(place: Path) -> None:
    parent = git(place, "rev-parse", "main")
    push(place, "main", "later")
    _without(place, parent)
    configure(
        place,
        f"""[remote "origin"]
	url = ext::sh -c touch% {mark(place)}
	promisor = true
	partialclonefilter = blob:none
[protocol "ext"]
	allow = always
""",
    )


@kind()
def a_working_tree_that_is_nowhere(place: Path) -> None:
    configure(place, "[core]\n\tbare = false\n\tworktree = /nowhere\n\tcompression = 99\n\tpackedGitLimit = 1\n")


@kind()
def it_has_grafts(place: Path) -> None:
    write(place / "info/grafts", git(place, "rev-parse", "main") + " " + commit(place, "grafted") + "\n")


def _without(place: Path, missing: str) -> None:
    loosen(place)
    (place / "objects" / missing[:2] / missing[2:]).unlink()
