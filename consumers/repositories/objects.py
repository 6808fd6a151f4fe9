"""Copies the objects that the target lacks from the source, as git's own files.

A file of objects never changes, and an object's name is its content's hash. So copying can undo nothing, and afterwards
the target has every object of the source, reachable or not.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import IO, Final

from consumers.contract.external import Pace
from consumers.repositories.git import Steps, git
from consumers.repositories.storage import Copy, sync_directory
from consumers.repositories.trees import copy_file, dress
from consumers.repositories.views import view

_LOOSE: Final = re.compile(r"[0-9a-f]{2}")
_OBJECT: Final = re.compile(r"[0-9a-f]{38}(?:[0-9a-f]{24})?")
_WITH_A_PACK: Final = (".promisor", ".mtimes", ".rev", ".pack", ".idx")
"""In the order in which they are copied: a pack is visible to git once its index is there."""
_A_PACK: Final = (".pack", ".idx")
"""The files that every pack has."""
_AT_ONCE: Final = 2_000


def bring_objects(source: Copy, target: Copy, seconds: float) -> Steps[None]:
    """Copy every object of `source` to `target`. Raises GitFailed, or FileNotFoundError during a gc."""
    packs, loose = yield from _files_missing(source.path / "objects", target.path / "objects")
    if not packs and not loose:
        return
    absent = yield from _objects_missing(source, target, seconds)
    if not absent:
        return
    for number, name in enumerate(name for name in loose if name.replace("/", "") in absent):
        yield from _put(source, target, name, seconds)
        absent.discard(name.replace("/", ""))
        if number % _AT_ONCE == 0:
            yield Pace.BUSY
    if absent:
        for pack in packs:
            for suffix in _WITH_A_PACK:
                # A pack that is gone is an error: a gc has put its objects into another one.
                if suffix in _A_PACK or (source.path / f"objects/pack/{pack}{suffix}").exists():
                    yield from _put(source, target, f"pack/{pack}{suffix}", seconds)


def _files_missing(source: Path, target: Path) -> Steps[tuple[list[str], list[str]]]:
    """Return the packs and loose objects of the source that are missing, incomplete or empty in the target."""
    loose: list[str] = []
    for directory in _listed(source):
        if _LOOSE.fullmatch(directory):
            there = {each.name for each in _scanned(target / directory) if each.stat().st_size > 0}
            loose += [f"{directory}/{name}" for name in _listed(source / directory) if name not in there]
            yield Pace.BUSY
    # Listed last, since git packs a loose object before it removes its file.
    there = set(_packs(target))
    packs = [name for name in _packs(source) if name not in there]
    return packs, [name for name in loose if _OBJECT.fullmatch(name[3:])]


def _objects_missing(source: Copy, target: Copy, seconds: float) -> Steps[set[str]]:
    """Return the objects of the source that the target lacks."""
    with tempfile.TemporaryFile() as names, tempfile.TemporaryFile() as found:
        yield from _git(
            source, "cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)",
            given=b"", into=names, seconds=seconds,
        )  # fmt: skip
        names.seek(0)
        yield from _git(
            target, "cat-file", "--buffer", "--batch-check=%(objecttype)", given=names, into=found, seconds=seconds
        )
        found.seek(0)
        absent: set[str] = set()
        for number, line in enumerate(found):
            if line.endswith(b" missing\n"):
                absent.add(line.split()[0].decode("ascii"))
            if number % (100 * _AT_ONCE) == 0:
                yield Pace.BUSY
        return absent


def _git(copy: Copy, *arguments: str, given: bytes | IO[bytes], into: IO[bytes], seconds: float) -> Steps[None]:
    opened = yield from view(copy)
    try:
        yield from git(*arguments, at=opened, given=given, into=into, seconds=seconds)
    finally:
        opened.close()


def _put(source: Copy, target: Copy, name: str, seconds: float) -> Steps[None]:
    """Copy a file of objects to where git looks for it, atomically."""
    place, made = target.path / "objects" / name, target.scratch()
    try:
        yield from copy_file(source.path / "objects" / name, made, seconds)
        os.utime(made)  # as git does, so that a gc treats it as new and keeps it until a ref leads to it
        _sync_file(made)
        if not place.parent.is_dir():
            place.parent.mkdir()
            dress(source.path / "objects" / Path(name).parent, place.parent)
        made.replace(place)
        sync_directory(place.parent)
    finally:
        made.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _packs(objects: Path) -> list[str]:
    """Return the packs that git sees: those of which both files are there."""
    names = _listed(objects / "pack")
    packs = {name.removesuffix(".pack") for name in names if name.endswith(".pack")}
    return [name for each in names if each.endswith(".idx") and (name := each.removesuffix(".idx")) in packs]


def _listed(directory: Path) -> list[str]:
    return sorted(each.name for each in _scanned(directory))


def _scanned(directory: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
