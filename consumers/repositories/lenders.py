"""Finds the repositories whose objects others use; since a lender has no list of them, all repositories are read.

A borrower names its lender in objects/info/alternates, or consists of links to it, or belongs to a working tree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from consumers.contract.external import Pace
from consumers.repositories.git import Steps
from consumers.repositories.storage import OWN, Copy, NotAPlace, Root

_SHARE: Final = 20.0
_SECONDS: Final = 60.0
"""All are read again after so long, and at most so often that it takes one twentieth of the time."""
_AT_ONCE: Final = 50


class Lenders:
    """The borrowed objects found when all repositories below the roots were last read."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = roots
        self._lent: dict[str, list[str]] = {}
        self._look_from = 0.0

    def look(self) -> Steps[None]:
        """Read all repositories, unless that was done recently."""
        began = time.monotonic()
        if began < self._look_from:
            return
        lent: dict[str, list[str]] = {}
        for root in self._roots:
            for number, repository in enumerate(_repositories(root.path)):
                for objects in _borrowed(repository):
                    lent.setdefault(os.path.realpath(objects), []).append(str(repository))
                if number % _AT_ONCE == 0:
                    yield Pace.BUSY
        self._lent = lent
        now = time.monotonic()
        self._look_from = now + max(_SECONDS, _SHARE * (now - began))

    def borrower_of(self, copy: Copy) -> str | None:
        """Return a repository that uses this one's objects in place, or None."""
        borrowers = self._lent.get(os.path.realpath(copy.path / "objects"), ())
        return next((each for each in borrowers if each != str(copy.path)), None)

    def refuse(self, copy: Copy) -> None:
        """Raise NotAPlace if another repository uses this one's objects."""
        if (borrower := self.borrower_of(copy)) is not None:
            raise NotAPlace(
                f"other repositories use its objects, such as {borrower}: run `git repack -a -d` there, then remove its"
                " objects/info/alternates"
            )


def _repositories(root: Path) -> Iterator[Path]:
    """Yield all repositories below a root, including those in headrace's own directory, but none within another."""
    ahead = [str(root)]
    while ahead:
        directory = ahead.pop()
        try:
            listed = list(os.scandir(directory))
        except OSError:
            continue
        names = {each.name for each in listed}
        if {"HEAD", "objects", "refs"} <= names:
            yield Path(directory)
            continue
        ahead += [each.path for each in listed if each.name != OWN and each.is_dir(follow_symlinks=False)]


def _borrowed(repository: Path) -> Iterator[str]:
    """Yield the object directories outside the repository that it uses."""
    objects = repository / "objects"
    try:
        if objects.is_symlink():
            yield str(objects)
        if (shared := repository / "commondir").exists():
            yield os.path.join(repository, os.fsdecode(shared.read_bytes()).strip(), "objects")
        lines = os.fsdecode((objects / "info/alternates").read_bytes()).split("\n")
    except OSError:
        return
    for line in lines:
        if line.strip() and not line.startswith("#"):
            yield os.path.join(objects, line.strip().strip('"'))
