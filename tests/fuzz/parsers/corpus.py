"""Chooses which inputs of a campaign are kept in the tree: few, small, and together with full coverage."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.parsers.campaign import CORPORA, kept, load_target
from tests.fuzz.parsers.target import Target

_PACKAGES: Final = tuple(str(Path.cwd() / package) + "/" for package in ("schemas", "infra", "producers", "consumers"))
_MOST: Final = 120

Arc = tuple[str, int, int]


def reached(target: Target, data: bytes) -> set[Arc]:
    """Return which line-to-line steps in headrace's modules an input takes."""
    found: set[Arc] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        del argument
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGES):
            return None
        if event != "call":
            return None
        last = -frame.f_code.co_firstlineno

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            del argument
            if event == "line":
                found.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        with contextlib.suppress(Exception):
            target.run(data)
    finally:
        sys.settrace(None)
    return found


def keep(name: str, work: Path) -> int:
    """Rewrite a target's corpus from its inputs and a campaign's in `work`; return the number of inputs."""
    target = load_target(name)
    candidates = {*target.seeds(), *kept(name)}
    if work.is_dir():
        candidates |= {path.read_bytes() for path in work.iterdir() if path.is_file()}
    seen: set[Arc] = set()
    chosen: list[bytes] = []
    for data in sorted(candidates, key=lambda each: (len(each), each)):
        if len(chosen) < _MOST and (new := reached(target, data) - seen):
            seen |= new
            chosen.append(data)
    folder = CORPORA / name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {hashlib.sha1(data, usedforsecurity=False).hexdigest()[:16]: data for data in chosen}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for file, data in wanted.items():
        (folder / file).write_bytes(data)
    return len(chosen)
