"""Carrying over what an old copy got since it was copied, without undoing what the new one got itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from consumers.moving.git import UPLOAD_PACK, GitFailed, Steps, git
from consumers.moving.refs import (
    BASE,
    KEPT,
    Carry,
    Clash,
    Refs,
    plan,
    read_base,
    read_refs,
    set_symbolic,
    symbolic,
    write_base,
)

_TRIES: Final = 5


def carry(source: Path, target: Path, *, seconds: float) -> Steps[list[str]]:
    """Bring `target` up to `source`; return the refs of which both values were kept.

    A ref is set only while it has the value that was looked at, so that neither a push to the source nor one to the
    target meanwhile is lost: the first is seen by the next call, the second makes this one look again. Again, or after
    a crash at any moment, it does what is left. Raises GitFailed when the two never stand still.
    """
    kept: list[str] = []
    for attempt in range(1, _TRIES + 1):
        base, theirs = read_base(target), (yield from read_refs(source))
        if base == theirs:
            return kept
        # A move that was turned round goes on from the base of the other direction: it was both copies' state once.
        known = base if base is not None else read_base(source) or {}
        ours = yield from read_refs(target)
        carries, clashes = plan(known, theirs, ours)
        try:
            yield from _fetch(source, target, [*carries, *clashes], seconds)
            for clash in clashes:
                carries.append((yield from _settled(target, clash, ours)))
            yield from _set(target, [each for each in carries if each.new != each.old])
        except GitFailed:
            if attempt == _TRIES:
                raise
            continue
        kept += [each.name for each in carries if each.name.startswith(KEPT)]
        write_base(target, theirs)
    return kept


def finish(target: Path) -> None:
    """Remove the base: the copy is the repository now."""
    (target / BASE).unlink(missing_ok=True)


def _fetch(source: Path, target: Path, changed: Sequence[Carry | Clash], seconds: float) -> Steps[None]:
    """Bring the objects; no ref is set."""
    names = [
        each.name
        for each in changed
        if each.name != "HEAD"
        and (value := each.new if isinstance(each, Carry) else each.source) is not None
        and not symbolic(value)
    ]
    if names:
        yield from git(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--refmap=",
            f"--upload-pack={UPLOAD_PACK}", "--stdin", "--", str(source),
            at=target, given=os.fsencode("".join(f"{name}\n" for name in names)), seconds=seconds,
        )  # fmt: skip


def _settled(target: Path, clash: Clash, ours: Refs) -> Steps[Carry]:
    """Return what becomes of a clash: of two branches the one that contains the other, else the target's value and,
    kept under another name, the source's.
    """
    if clash.target is None:
        return Carry(clash.name, clash.source, None)
    if clash.name.startswith("refs/heads/"):
        if (yield from _contains(target, clash.source, clash.target)):
            return Carry(clash.name, clash.source, clash.target)
        if (yield from _contains(target, clash.target, clash.source)):
            return Carry(clash.name, clash.target, clash.target)
    kept = f"{KEPT}{clash.source}/{clash.name.removeprefix('refs/')}"
    return Carry(kept, clash.source, ours.get(kept))


def _contains(repository: Path, commit: str, other: str) -> Steps[bool]:
    """Return whether `other` is `commit` or an ancestor of it."""
    said = yield from git("rev-list", "--count", "--max-count=1", other, f"^{commit}", at=repository)
    return said.strip() == b"0"


def _set(target: Path, carries: Sequence[Carry]) -> Steps[None]:
    """Set refs, each only if it still is as it was; all deletions first, since `a` and `a/b` exclude each other."""
    direct = [each for each in carries if each.name != "HEAD" and not symbolic(each.new) and not symbolic(each.old)]
    for deleting in (True, False):
        lines = [_line(each) for each in direct if (each.new is None) == deleting]
        if lines:
            yield from git("update-ref", "--no-deref", "--stdin", "-z", at=target, given=b"".join(lines))
    for each in carries:
        if each not in direct:
            if each.new is None:
                yield from git("symbolic-ref", "--delete", each.name, at=target)
            else:
                yield from set_symbolic(target, each.name, each.new)


def _line(each: Carry) -> bytes:
    name = os.fsencode(each.name)
    old = (each.old or "").encode()
    if each.new is None:
        return b"delete " + name + b"\0" + old + b"\0"
    if each.old is None:
        return b"create " + name + b"\0" + each.new.encode() + b"\0"
    return b"update " + name + b"\0" + each.new.encode() + b"\0" + old + b"\0"
