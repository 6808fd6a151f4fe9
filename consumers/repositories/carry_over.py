"""Carries over changes of an old copy since it was copied, without undoing changes of the new one.

A three-way merge of each ref and each file: the old copy, the new copy, and their base. If only one side changed, its
value is taken; if both did, both values are kept.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from consumers.contract.external import Pace
from consumers.repositories.base import Base, shared_base, write_base
from consumers.repositories.fingerprint import fingerprint
from consumers.repositories.git import GitFailed, Steps, View, git
from consumers.repositories.objects import bring_objects
from consumers.repositories.proof import is_untouched
from consumers.repositories.refs import KEPT, Carry, Clash, Refs, plan, read_refs, set_refs, symbolic
from consumers.repositories.storage import Copy, sync_directory
from consumers.repositories.trees import Entry, copy_file, dress, entry, walk
from consumers.repositories.views import view

Tell = Callable[[str], None]
"""Called with a remark for the operator before its cause is gone; may be called twice with the same remark."""

KEPT_FILES: Final = "headrace-kept"
"""Where the old copy's version of a file that was changed at both is kept, as `<digest>/<path>`."""

_TRIES: Final = 5
_KEYSTONES: Final = ("HEAD", "config", "packed-refs", "objects", "refs", "refs/heads")
_SURE_SECONDS: Final = 0.2
_BLOCK: Final = 1 << 20
# The only file whose absence has a meaning for git: the history is complete again.
_DELETED_TOO: Final = ("shallow",)


def carry(source: Copy, target: Copy, *, seconds: float, tell: Tell) -> Steps[None]:
    """Bring `target` up to date with `source`; afterwards it has every object that the source had.

    A ref is set only if it still has the value that was read, so that no concurrent push is lost: a push to the source
    is carried over by the next call, a push to the target makes this call read again. Idempotent, also after a crash at
    any moment. Raises GitFailed if the copies keep changing, or another process is removing the source.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            yield from _carry(source, target, seconds, tell)
            return
        except (GitFailed, FileNotFoundError):
            if attempt == _TRIES:
                raise


def keep_up(source: Copy, target: Copy, *, seconds: float, tell: Tell) -> Steps[None]:
    """Bring `target` up to date as `carry` does; runs no git if neither has changed since."""
    base = shared_base(source, target)
    if (
        base is None
        or base.fingerprint == ""
        or base.fingerprint != (yield from fingerprint(source.path))
        or base.files != (yield from walk(source.path, files_only=True))
        or not (yield from is_untouched(target))
    ):
        yield from carry(source, target, seconds=seconds, tell=tell)


def keystones(copy: Copy) -> tuple[str, ...]:
    """Return the existing parts that git never removes, and whose absence shows that a repository is being deleted."""
    return tuple(each for each in _KEYSTONES if os.path.lexists(copy.path / each))


def _carry(source: Copy, target: Copy, seconds: float, tell: Tell) -> Steps[None]:
    base = shared_base(source, target)
    before = yield from fingerprint(source.path)
    theirs = yield from read_refs(source)
    files = yield from walk(source.path, files_only=True)
    yield from bring_objects(source, target, seconds)
    if base is not None and theirs == base.refs and files == base.files:
        return
    known = base or Base({}, {})
    ours = yield from read_refs(target)
    carries, clashes = plan(known.refs, theirs, ours)
    if any(each.new is None for each in carries):
        yield from _be_sure(source, theirs)
    _refuse_if_being_removed(source, known)
    yield from _carry_files(source, target, known.files, files, seconds, tell)
    kept = yield from _settled(target, clashes, ours)
    carries = [each for each in [*carries, *kept] if each.new != each.old]
    carries = list(_with_room(carries, ours))
    if count := sum(each.name.startswith(KEPT) for each in carries):
        tell(f"both copies were written to: the other values of {count} refs are under {KEPT.rstrip('/')}")
    yield from set_refs(target, carries)
    write_base(target.path, source.path, Base(theirs, files, keystones(source), before))


def _be_sure(source: Copy, theirs: Refs) -> Steps[None]:
    """Read again before a ref is deleted: a process may be deleting the whole repository, file by file."""
    until = time.monotonic() + _SURE_SECONDS
    while time.monotonic() < until:
        time.sleep(_SURE_SECONDS / 10)
        yield Pace.BUSY
    if (yield from read_refs(source)) != theirs:
        raise GitFailed("its refs keep changing")


def _refuse_if_being_removed(source: Copy, known: Base) -> None:
    there = keystones(source)
    if not source.is_there or any(each not in there for each in known.keystones):
        raise GitFailed("another process is removing the old copy")


def _carry_files(
    source: Copy, target: Copy, base: Mapping[str, Entry], files: Mapping[str, Entry], seconds: float, tell: Tell
) -> Steps[None]:
    for path, here in files.items():
        before, there = base.get(path), _entry(target.path / path)
        if here in (before, there):
            continue
        if here.kind == "directory":
            if there is None or there == before:
                (target.path / path).mkdir(parents=True, exist_ok=True)
                dress(source.path / path, target.path / path)
        elif _is_within(target, path) and (there is None or there == before):
            yield from _put(source, target, path, target.path / path, seconds)
        elif there is None or not _same(source.path / path, target.path / path, here, there):
            kept = f"{KEPT_FILES}/{_digest(source.path / path, here)}/{path}"
            tell(f"both copies were written to: the old home's {path} is kept at the new home as {kept}")
            yield from _put(source, target, path, target.path / kept, seconds)
    for path in _DELETED_TOO:
        if path in base and path not in files and _entry(target.path / path) == base[path]:
            (target.path / path).unlink(missing_ok=True)


def _put(source: Copy, target: Copy, path: str, place: Path, seconds: float) -> Steps[None]:
    """Copy a file into the target, atomically."""
    made = target.scratch()
    try:
        yield from copy_file(source.path / path, made, seconds)
        if not made.is_symlink():
            with made.open("rb") as file:
                os.fsync(file.fileno())
        place.parent.mkdir(parents=True, exist_ok=True)
        made.replace(place)
        sync_directory(place.parent)
    finally:
        made.unlink(missing_ok=True)


def _entry(path: Path) -> Entry | None:
    try:
        return entry(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_within(target: Copy, path: str) -> bool:
    """Return whether the path is inside the target, with no symbolic link out of it."""
    parent = os.path.realpath((target.path / path).parent)
    return Path(parent).is_relative_to(os.path.realpath(target.path))


def _same(source: Path, target: Path, here: Entry, there: Entry) -> bool:
    """Return whether a file has the same content in both, regardless of its times."""
    alike = replace(here, mtime_ns=0) == replace(there, mtime_ns=0)
    return alike and (here.kind == "link" or _digest(source, here) == _digest(target, there))


def _digest(path: Path, known: Entry) -> str:
    found = hashlib.sha256(os.fsencode(known.link))
    if known.kind == "file":
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    return found.hexdigest()[:16]


def _settled(target: Copy, clashes: Sequence[Clash], ours: Refs) -> Steps[list[Carry]]:
    if not clashes:
        return []
    opened = yield from view(target)
    try:
        settled = []
        for clash in clashes:
            settled.append((yield from _settle(opened, clash, ours)))
        return settled
    finally:
        opened.close()


def _settle(target: View, clash: Clash, ours: Refs) -> Steps[Carry]:
    """Resolve a clash: take the branch that contains the other, else the target's value, and keep the source's under
    another name.
    """
    if clash.target is None:
        return Carry(clash.name, clash.source, None)
    if clash.name.startswith("refs/heads/") and not symbolic(clash.target):
        if (yield from _contains(target, clash.source, clash.target)):
            return Carry(clash.name, clash.source, clash.target)
        if (yield from _contains(target, clash.target, clash.source)):
            return Carry(clash.name, clash.target, clash.target)
    return _kept(clash.name, clash.source, ours)


def _kept(name: str, value: str, ours: Refs) -> Carry:
    kept = f"{KEPT}{value}/{name.removeprefix('refs/')}"
    return Carry(kept, value, ours.get(kept))


def _contains(repository: View, commit: str, other: str) -> Steps[bool]:
    """Return whether `other` is `commit` or an ancestor of it."""
    said = yield from git("rev-list", "--count", "--max-count=1", other, f"^{commit}", at=repository)
    return said.strip() == b"0"


def _with_room(carries: Sequence[Carry], ours: Refs) -> Iterator[Carry]:
    """Yield the carries; a ref for which the target has no room is kept under another name: `a` and `a/b` exclude each
    other, and each was created at one home.
    """
    deleted = {each.name for each in carries if each.new is None}
    there = ours.keys() - deleted
    above = {parent for name in there for parent in _above(name)}
    for each in carries:
        crowded = each.name in above or any(parent in there for parent in _above(each.name))
        if each.old is None and each.new is not None and not symbolic(each.new) and crowded:
            yield _kept(each.name, each.new, ours)
        else:
            yield each


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))
