"""Normalises repository names from outside, and checks the paths on disk that they lead to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from consumers.repositories.storage import NotAPlace, Root
from consumers.routing.placement import Algorithm, Placement, normalised, order_key, partition_of
from producers.walk.events import escaped
from tests.fuzz.parsers.target import Target, Violation, agree, outcome

_ROOT: Final = Root(Path("/nowhere/root"))
_NODES: Final = Placement(("a:1", "b:1", "c:1"), {"pinned/name": "b:1"})
_SHOWN: Final = re.compile(r"\\x([0-9a-f]{2})|\\\\|[^\\]")


def _run(data: bytes) -> None:
    name = data.decode("utf-8", "surrogateescape")
    for algorithm in Algorithm:
        if _NODES.home(name, algorithm) not in _NODES.nodes:
            raise Violation("an unknown node")
    partition_of(name)
    cleaned = normalised(name)
    if cleaned.startswith("/") or any(part in ("..", ".") for part in cleaned.split("/")):
        raise Violation(f"a normalised name that leads elsewhere: {cleaned!r}")
    agree("the order and the name", order_key(name), cleaned.encode("utf-8", "surrogateescape"))
    for each in (name, cleaned):
        kind, place = outcome(NotAPlace, _ROOT.place, each)
        if kind == "value":
            inside = os.path.relpath(os.path.normpath(str(place)), _ROOT.path)
            agree("a place and its name", inside, f"{each}/.git")
    agree("what is shown of a path", _unescaped(escaped(data)), data)


def _unescaped(shown: str) -> bytes:
    """Read back what `escaped` shows, which proves that no two paths are shown alike."""
    if not shown.isprintable():
        raise Violation(f"a path with unprintable characters: {shown!r}")
    parts = []
    for found in _SHOWN.finditer(shown):
        if found[1]:
            parts.append(bytes.fromhex(found[1]))
        else:
            parts.append(b"\\" if found[0] == r"\\" else found[0].encode())
    return b"".join(parts)


def _seeds() -> Iterator[bytes]:
    yield from (
        b"github.com/GitLab-Org/GitLab.git",
        b"DELETED-1650360042.603863-github.com/a/b",
        b"../../etc/passwd",
        b"a/../..//b/./c/",
        b".headrace/gone/x",
        b"a/.GIT/b",
        "İΣ.com/ΑΣ".encode(),
        b"\xff\xfe/\x00",
        b"x" * 300,
        rb"a\x2e\\b",
    )


TARGET = Target(
    "names and paths of repositories",
    _run,
    _seeds,
    dictionary=(b"../", b"/./", b"//", b".git", b".headrace", b"DELETED-1.1-", b"\\x"),
    longest=512,
)
