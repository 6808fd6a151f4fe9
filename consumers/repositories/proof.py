"""Proves that a copy is complete: every reachable object exists, and its content matches its name."""

from __future__ import annotations

import os
import re
from typing import Final

from consumers.repositories.base import read_proof, write_proof
from consumers.repositories.fingerprint import fingerprint
from consumers.repositories.git import GitFailed, NoRoom, Steps, asked, failure
from consumers.repositories.storage import Copy
from consumers.repositories.views import promising_view

_LINT: Final = (b"error in ", b"warning in ", b"warning: ", b"dangling ", b"notice: ", b"unreachable ")
"""Messages of git about an object's original content, which is not damage."""
_DANGLING: Final = re.compile(rb"error: (refs/.*): invalid sha1 pointer 0+")


def prove(copy: Copy, *, seconds: float, content: bool = False) -> Steps[None]:
    """Prove that a copy is complete, unless that was done and its objects and refs are unchanged.

    With `content` the content of every object is read too, which finds damage by a disk or a killed process. Raises
    GitFailed with the missing or damaged object.
    """
    if not content and (yield from is_untouched(copy)):
        return
    before = yield from fingerprint(copy.path)
    opened = yield from promising_view(copy)
    try:
        how = () if content else ("--connectivity-only",)
        ended = yield from asked("fsck", *how, "--no-dangling", "--no-progress", at=opened, seconds=seconds)
    finally:
        opened.close()
    lines = [*ended.said.split(b"\n"), *ended.complained.split(b"\n")]
    damage = [line for line in lines if line.strip() and not line.startswith(_LINT) and not _dangles(copy, line)]
    if ended.code != 0 and (damage or ended.code < 0):
        error = failure("git", ended)
        if isinstance(error, NoRoom):
            raise error
        said = next(
            (line for line in damage if line.startswith(b"missing ")), damage[0] if damage else b"git was killed"
        )
        raise GitFailed(f"git: it is not complete: {said.decode('utf-8', 'replace')[:500]}")
    write_proof(copy.path, before)


def _dangles(copy: Copy, line: bytes) -> bool:
    """Return whether git complains about a symbolic ref whose branch does not exist, which is valid as for HEAD."""
    found = _DANGLING.fullmatch(line)
    if found is None:
        return False
    try:
        return (copy.path / os.fsdecode(found[1])).read_bytes().startswith(b"ref:")
    except OSError:
        return False


def is_untouched(copy: Copy) -> Steps[bool]:
    """Return whether a copy is unchanged since it was proven to be complete in this move."""
    proof = read_proof(copy.path)
    return proof != "" and proof == (yield from fingerprint(copy.path))
