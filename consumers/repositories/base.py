"""The base of two copies: their common state when the target last took over all of the source, a file in the target.

It makes two copies the pair of a move: it identifies both directories, and is valid for no others. A repository that is
not being moved has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from consumers.repositories.storage import Copy
from consumers.repositories.trees import Entry
from schemas import formats
from schemas.errors import Malformed
from schemas.lazy_dataclass import dataclass

BASE: Final = "headrace-moving"
"""The file's name."""


@dataclass(frozen=True)
class Base:
    """Refs and files that both copies had; see refs.py and trees.py."""

    refs: Mapping[str, str]
    files: Mapping[str, Entry]
    keystones: tuple[str, ...] = ()
    """The parts that the other copy has unless a process is removing it."""
    fingerprint: str = ""
    """The other copy's fingerprint (fingerprint.py) before it was read, empty if it had none."""


def shared_base(source: Copy, target: Copy) -> Base | None:
    """Return the base of two copies, None if they are not a pair. Either may have it: moves can be reversed."""
    for one, other in ((target, source), (source, target)):
        found = _read(one.path)
        if found is not None and found["pair"] == [number(one.path), number(other.path)]:
            files = {path: Entry(*fields) for path, fields in found["files"].items()}
            return Base(found["refs"], files, tuple(found["keystones"]), found["fingerprint"])
    return None


def write_base(at: Path, source: Path, base: Base) -> None:
    """Write the base into a copy that took over all of `source`, atomically."""
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
    """Record the fingerprint of a copy that was proven to be complete; does nothing if it has no base."""
    if (known := _read(at)) is not None:
        _write(at, {**known, "proof": proof})


def read_proof(at: Path) -> str:
    """Return a copy's fingerprint when it was proven to be complete in this move; empty if it never was."""
    known = _read(at)
    return str(known["proof"]) if known is not None else ""


def finish(at: Path) -> None:
    """Remove the base: the copy is the repository now."""
    (at / BASE).unlink(missing_ok=True)


def number(path: Path) -> int:
    """Return a number that identifies a directory across renames, but not another one at the same path."""
    return path.stat().st_ino


def _read(at: Path) -> dict[str, Any] | None:
    """Return a copy's base, None if it has none of its own: a base of another copy may have been copied along.

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
