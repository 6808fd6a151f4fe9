"""Plans which refs to carry from one copy of a repository to the other, and sets them.

A three-way merge of the source, the target, and the base, which has the source's refs when the target last took over
all of it. If only one side changed a ref, its value is taken; if both did, it is a clash, and both values are kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumers.repositories.git import GitFailed, Steps, View, asked, git
from consumers.repositories.storage import Copy
from consumers.repositories.views import view

Refs = Mapping[str, str]
"""Ref → its object's id, or `ref: <other ref>` if it is symbolic; includes HEAD."""

KEPT: Final = "refs/headrace/kept/"
"""The prefix under which a clash's other value is kept, as `<id>/<ref without refs/>`."""

_SYMBOLIC: Final = "ref: "
_ELSEWHERE: Final = "ref: refs/heads/.invalid"
"""The content of the file HEAD if refs are stored in a reftable."""
_LONGEST: Final = 4_096


@dataclass(frozen=True, slots=True)
class Carry:
    """Set ref `name` of the target to `new`, or delete it (None), if it still is `old` (None: it does not exist)."""

    name: str
    new: str | None
    old: str | None


@dataclass(frozen=True, slots=True)
class Clash:
    """A ref that both sides changed: the source to `source`, the target to `target`; None if deleted."""

    name: str
    source: str
    target: str | None


def plan(base: Refs, source: Refs, target: Refs) -> tuple[list[Carry], list[Clash]]:
    """Return the changes that bring the target up to date without undoing its own changes."""
    carries: list[Carry] = []
    clashes: list[Clash] = []
    for name in sorted(base.keys() | source.keys()):
        before, here, there = base.get(name), source.get(name), target.get(name)
        if here in (before, there):
            continue
        if there == before:
            carries.append(Carry(name, here, there))
        elif here is not None and not symbolic(here):
            # If one side deleted what the other changed, the change wins, so that nothing is lost.
            clashes.append(Clash(name, here, there))
    return carries, clashes


def symbolic(value: str | None) -> bool:
    """Return whether a ref's value is another ref."""
    return value is not None and value.startswith(_SYMBOLIC)


def read_refs(copy: Copy) -> Steps[dict[str, str]]:
    """Return all current refs of a repository, including dangling ones."""
    refs: dict[str, str] = {}
    opened = yield from view(copy)
    try:
        listed = yield from git("for-each-ref", "--format=%(objectname) %(refname) %(symref)", at=opened)
        for line in os.fsdecode(listed).split("\n")[:-1]:
            value, name, target = line.split(" ")
            refs[name] = f"{_SYMBOLIC}{target}" if target else value
        refs |= _dangling(copy.path, refs)
        refs["HEAD"] = yield from _head(copy.path / "HEAD", opened)
    finally:
        opened.close()
    return refs


def _dangling(repository: Path, listed: Refs) -> Refs:
    """Return the symbolic refs that git does not list, since their target does not exist."""
    found: dict[str, str] = {}
    for directory, _, names in os.walk(repository / "refs"):
        for name in names:
            path = Path(directory, name)
            ref = str(path.relative_to(repository))
            if ref not in listed and not name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    said = os.fsdecode(file.read(_LONGEST))
                    if said.startswith("ref:"):
                        found[ref] = f"{_SYMBOLIC}{said.removeprefix('ref:').strip()}"
    return found


def _head(head: Path, opened: View) -> Steps[str]:
    if head.is_symlink():
        return f"{_SYMBOLIC}{head.readlink()}"
    said = os.fsdecode(head.read_bytes()).strip()
    if said != _ELSEWHERE:
        return f"{_SYMBOLIC}{said.removeprefix('ref:').strip()}" if said.startswith("ref:") else said
    return (yield from _named(opened, "HEAD"))


def _named(opened: View, name: str) -> Steps[str]:
    """Return the value of a ref that may be symbolic."""
    found = yield from asked("symbolic-ref", "--quiet", name, at=opened)
    if found.code == 0:
        return f"{_SYMBOLIC}{os.fsdecode(found.said).strip()}"
    return os.fsdecode((yield from git("rev-parse", "--verify", name, at=opened))).strip()


def set_refs(target: Copy, carries: Sequence[Carry]) -> Steps[None]:
    """Set refs, each only if it still has its old value; deletions first, since `a` and `a/b` exclude each other."""
    direct = [each for each in carries if each.name != "HEAD" and not symbolic(each.new) and not symbolic(each.old)]
    opened = yield from view(target)
    try:
        for deleting in (True, False):
            lines = [_line(each) for each in direct if (each.new is None) == deleting]
            if lines:
                yield from git("update-ref", "--no-deref", "--stdin", "-z", at=opened, given=b"".join(lines))
        for each in carries:
            if each not in direct:
                yield from _set_symbolic(target, opened, each)
    finally:
        opened.close()


def _set_symbolic(target: Copy, opened: View, carry: Carry) -> Steps[None]:
    """Set a ref that is or was symbolic, or HEAD."""
    if carry.name == "HEAD" and not (target.path / "reftable").is_dir():
        assert carry.new is not None
        _write_head(target.path / "HEAD", carry.new)
    elif carry.new is None:
        yield from git("symbolic-ref", "--delete", carry.name, at=opened)
    elif symbolic(carry.new):
        yield from git("symbolic-ref", carry.name, carry.new.removeprefix(_SYMBOLIC), at=opened)
    else:
        yield from git("update-ref", "--no-deref", carry.name, carry.new, at=opened)


def _write_head(head: Path, value: str) -> None:
    """Write HEAD as git does, with its lock; a symbolic link stays one while the ref is symbolic."""
    lock = head.with_name("HEAD.lock")
    try:
        status = head.lstat()
        if head.is_symlink() and symbolic(value):
            lock.symlink_to(value.removeprefix(_SYMBOLIC))
        else:
            with lock.open("xb") as file:
                file.write(os.fsencode(value) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            lock.chmod(0o644 if head.is_symlink() else stat.S_IMODE(status.st_mode))
        if os.geteuid() == 0:
            os.chown(lock, status.st_uid, status.st_gid, follow_symlinks=False)
    except FileExistsError as error:
        raise GitFailed("another process is writing HEAD") from error
    lock.replace(head)


def _line(each: Carry) -> bytes:
    name = os.fsencode(each.name)
    old = (each.old or "").encode()
    if each.new is None:
        return b"delete " + name + b"\0" + old + b"\0"
    if each.old is None:
        return b"create " + name + b"\0" + each.new.encode() + b"\0"
    return b"update " + name + b"\0" + each.new.encode() + b"\0" + old + b"\0"
