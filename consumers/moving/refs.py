"""The refs of two copies of a repository, and what has to be carried from the one to the other. Pure but for reading.

Three states decide: what the source has, what the target has, and the base, which is what the source had when the
target last took over all of it. A ref that changed at one of the two only is that one's; one that changed at both is
a clash, and both values are kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumers.moving.git import Steps, git

Refs = Mapping[str, str]
"""Ref → its object's id, or `ref: <other ref>` where it is symbolic; HEAD is among them."""

BASE: Final = "headrace-moving"
"""The file in a copy that has its base; a repository that is not moving has none."""

KEPT: Final = "refs/headrace/kept/"
"""Where a clash's other value is kept, as `<id>/<ref without refs/>`."""

_SYMBOLIC: Final = "ref: "
_ELSEWHERE: Final = "ref: refs/heads/.invalid"
"""What the file HEAD says where refs are stored otherwise (reftable)."""


@dataclass(frozen=True, slots=True)
class Carry:
    """Set ref `name` of the target to `new`, or delete it (None), provided that it still is `old` (None: not there)."""

    name: str
    new: str | None
    old: str | None


@dataclass(frozen=True, slots=True)
class Clash:
    """Both changed: the source to `source`, the target to `target`, None where it was deleted there."""

    name: str
    source: str
    target: str | None


def plan(base: Refs, source: Refs, target: Refs) -> tuple[list[Carry], list[Clash]]:
    """Return what brings the target up to the source without undoing what was done at the target."""
    carries: list[Carry] = []
    clashes: list[Clash] = []
    for name in sorted(base.keys() | source.keys()):
        before, here, there = base.get(name), source.get(name), target.get(name)
        if here in (before, there):
            continue
        if there == before:
            carries.append(Carry(name, here, there))
        elif here is not None and name != "HEAD" and not symbolic(here):
            # Where one of the two deleted what the other changed, the change counts: nothing is lost.
            clashes.append(Clash(name, here, there))
    return carries, clashes


def symbolic(value: str | None) -> bool:
    """Return whether a ref's value is another ref."""
    return value is not None and value.startswith(_SYMBOLIC)


def read_refs(repository: Path) -> Steps[dict[str, str]]:
    """Return all refs of a repository as they are now."""
    listed = yield from git("for-each-ref", "--format=%(objectname) %(refname) %(symref)", at=repository)
    refs: dict[str, str] = {}
    for line in os.fsdecode(listed).split("\n")[:-1]:
        value, name, target = line.split(" ")
        refs[name] = f"{_SYMBOLIC}{target}" if target else value
    refs["HEAD"] = yield from _head(repository)
    return refs


def _head(repository: Path) -> Steps[str]:
    head = os.fsdecode((repository / "HEAD").read_bytes()).strip()
    if head != _ELSEWHERE:
        return head
    named = yield from git("symbolic-ref", "--quiet", "HEAD", at=repository, accept=(0, 1))
    if named:
        return f"{_SYMBOLIC}{os.fsdecode(named).strip()}"
    return os.fsdecode((yield from git("rev-parse", "HEAD", at=repository))).strip()


def read_base(repository: Path) -> dict[str, str] | None:
    """Return the base that a copy was left with, None where it has none."""
    try:
        text = os.fsdecode((repository / BASE).read_bytes())
    except FileNotFoundError:
        return None
    return {name: value for value, _, name in (line.partition("\t") for line in text.split("\n")) if name}


def write_base(repository: Path, refs: Refs) -> None:
    """Leave `refs` with a copy as its base, all or nothing."""
    text = "".join(f"{value}\t{name}\n" for name, value in sorted(refs.items()))
    made = repository / f"{BASE}.new"
    with made.open("wb") as file:
        file.write(os.fsencode(text))
        file.flush()
        os.fsync(file.fileno())
    made.replace(repository / BASE)


def set_symbolic(repository: Path, name: str, value: str) -> Steps[None]:
    """Make a ref what `value` says: another ref's name, or for HEAD an object's id."""
    if symbolic(value):
        yield from git("symbolic-ref", name, value.removeprefix(_SYMBOLIC), at=repository)
    else:
        yield from git("update-ref", "--no-deref", name, value, at=repository)
