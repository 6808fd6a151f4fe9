"""The base of two copies: what both had when the one last took over all of the other, kept as a file in the one.

It is what makes two copies a pair of one move: it names both directories, and counts for no others. A repository that
is not moving has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from consumers.repositories.storage import Copy
from consumers.repositories.trees import Entry
from schemas import formats
from schemas.errors import Malformed

BASE: Final = "headrace-moving"
"""The file's name."""


@dataclass(frozen=True, slots=True)
class Base:
    """Refs and files that both copies had; see refs.py and trees.py."""

    refs: Mapping[str, str]
    files: Mapping[str, Entry]
    keystones: tuple[str, ...] = ()
    """What the other copy has as long as nobody is removing it."""
    fingerprint: str = ""
    """That of the other copy (fingerprint.py) before it was read, empty where none was to be had."""


def shared_base(source: Copy, target: Copy) -> Base | None:
    """Return the base of these two, None where they are no pair. Either has it: a move may have been turned round."""
    for one, other in ((target, source), (source, target)):
        found = _read(one.path)
        if found is not None and found["pair"] == [number(one.path), number(other.path)]:
            files = {path: Entry(*fields) for path, fields in found["files"].items()}
            return Base(found["refs"], files, tuple(found["keystones"]), found["fingerprint"])
    return None


def write_base(at: Path, source: Path, base: Base) -> None:
    """Leave the base with a copy that took over all of `source`, all or nothing."""
    known = _read(at)
    _write(
        at,
        {
            "pair": [number(at), number(source)],
            "refs": dict(base.refs),
            "files": {path: astuple(each) for path, each in base.files.items()},
            "keystones": base.keystones,
            "fingerprint": base.fingerprint,
            "proof": known["proof"] if known is not None else "",
        },
    )


def write_proof(at: Path, proof: str) -> None:
    """Note which objects a copy had when it was proven to be whole; nothing where it has no base."""
    if (known := _read(at)) is not None:
        _write(at, {**known, "proof": proof})


def read_proof(at: Path) -> str:
    """Return which objects a copy had when it was proven to be whole; empty when it never was in this move."""
    known = _read(at)
    return str(known["proof"]) if known is not None else ""


def finish(at: Path) -> None:
    """Remove the base: the copy is the repository now."""
    (at / BASE).unlink(missing_ok=True)


def number(path: Path) -> int:
    """Return what tells a directory from another one that lay at the same path before: renaming keeps it."""
    return path.stat().st_ino


def _read(at: Path) -> dict[str, Any] | None:
    """Return a copy's base, None where it has none of its own: one may have been copied with all else.

    Raises NewerFormat.
    """
    try:
        found = formats.MOVES.read(json.loads((at / BASE).read_text(encoding="ascii")), f"{at.name}/{BASE}")
        return found if found["pair"][0] == number(at) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, Malformed):
        return None


def _write(at: Path, content: dict[str, Any]) -> None:
    made = at / f"{BASE}.new"
    with made.open("w", encoding="ascii") as file:
        json.dump(formats.MOVES.write(content), file)
        file.flush()
        os.fsync(file.fileno())
    made.replace(at / BASE)
