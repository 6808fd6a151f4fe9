"""Computes a repository's gitserver node: by md5 of its name, as before the moves, and by rendezvous hashing, as after.

Pure, and identical to gitserver's computation, so that repositories on the disks are found. Every function takes the
name as it is in the database and normalises it itself. Do not pass a normalised name: like gitserver's, the rule is not
idempotent (`a.git.git` becomes `a.git`, and that `a`).

Bytes that are not UTF-8 are represented by `surrogateescape`, and hashed as the original bytes. A str with any other
lone surrogate is not a name, and raises UnicodeEncodeError.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final

import xxhash

from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass

PARTITIONS: Final = 16
"""The number of partitions of the names, each with its own cursor; see `partition_of`."""

_DELETED: Final = re.compile(r"(?:DELETED-[0-9]+\.[0-9]+-)+")
_FULLY_FOLDED: Final = "github.com"
_MASK: Final = 2**64 - 1

_BY_RUNE: Final = {0x130: "i", 0x3A3: "\u03c3"} | dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")
"""The differences of Go's lower-casing, rune by rune, from Python's: İ stays one letter, a final Σ is no exception, and
a byte that is not UTF-8 becomes the replacement character."""


class Algorithm(StrEnum):
    """The algorithm that chooses a name's node."""

    MD5 = "md5"
    """By position in the list of nodes: another order or number of nodes moves most names."""
    RENDEZVOUS = "rendezvous"
    """By the highest score of name and node: adding or removing a node moves only its own names."""


def normalised(name: str) -> str:
    """Return the form of a repository's name that is hashed and ordered; may be empty (`a/..`).

    The prefix `DELETED-<digits>.<digits>-`, which marks a repository as deleted, is removed. Then, as in gitserver, a
    trailing `.git` is removed, the path is cleaned (`.`, `..`, slashes), and the host, the part before the first slash,
    is lower-cased; for github.com the path too. A name without a slash keeps its case.
    """
    if deleted := _DELETED.match(name):
        name = name[deleted.end() :]
    # normpath drops `..` above the root, but keeps two leading slashes.
    path = posixpath.normpath("/" + name.removesuffix(".git").lstrip("/"))[1:]
    host, slash, rest = path.partition("/")
    if not slash:
        return path
    host = _lower(host)
    return f"{host}/{_lower(rest) if host == _FULLY_FOLDED else rest}"


def order_key(name: str) -> bytes:
    """Return the sort key of a name: the bytes of its normalised form, in the order of COLLATE "C"."""
    return _bytes(normalised(name))


def partition_of(name: str) -> int:
    """Return the partition of a name, by crc32 of its normalised form."""
    return zlib.crc32(order_key(name)) % PARTITIONS


def md5_home(name: str, nodes: Sequence[str]) -> str:
    """Return the name's node by md5; depends on the order of `nodes`, which must not be empty."""
    return _by_md5(order_key(name), nodes)


def rendezvous_home(name: str, nodes: Sequence[str]) -> str:
    """Return the name's node by rendezvous hashing; of equal scores the earlier node wins. Needs at least one node."""
    return _by_rendezvous(order_key(name), tuple(nodes))


def home(name: str, nodes: Sequence[str], algorithm: Algorithm) -> str:
    """Return the name's node by `algorithm`, without pins (see `Placement`). Needs at least one node."""
    return md5_home(name, nodes) if algorithm is Algorithm.MD5 else rendezvous_home(name, nodes)


@dataclass(frozen=True)
class Placement:
    """The nodes in their order, and the names that are pinned to one of them before anything is hashed.

    Raises UsageError if there is no node, or if two spellings of a name are pinned to different nodes.
    """

    nodes: tuple[str, ...]
    pins: Mapping[str, str] = field(default_factory=dict)
    """Repository name, in any spelling → node."""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UsageError("there are no gitserver nodes", remedy="list them in the application's order")
        for name, node in self.pins.items():
            if self._pinned[order_key(name)] != node:
                raise UsageError(
                    f"{name} is pinned to two nodes", remedy="pin it once: spellings of a name count as one"
                )

    @cached_property
    def _pinned(self) -> Mapping[bytes, str]:
        return {order_key(name): node for name, node in self.pins.items()}

    def home(self, name: str, algorithm: Algorithm) -> str:
        """Return the name's node: the one it is pinned to, else by `algorithm`."""
        key = order_key(name)
        pinned = self._pinned.get(key)
        if pinned is not None:
            return pinned
        return _by_md5(key, self.nodes) if algorithm is Algorithm.MD5 else _by_rendezvous(key, self.nodes)


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_BY_RUNE).lower()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _by_md5(key: bytes, nodes: Sequence[str]) -> str:
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    return nodes[int.from_bytes(digest[:8], "big") % len(nodes)]


def _by_rendezvous(key: bytes, nodes: tuple[str, ...]) -> str:
    name = xxhash.xxh64_intdigest(key)
    best, highest = nodes[0], -1
    for node, hashed in _hashed(nodes):
        score = name ^ hashed
        score ^= score >> 12
        score = (score ^ (score << 25)) & _MASK
        score ^= score >> 27
        score = (score * 2685821657736338717) & _MASK
        if score > highest:
            best, highest = node, score
    return best


@lru_cache(maxsize=64)
def _hashed(nodes: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    return tuple((node, xxhash.xxh64_intdigest(_bytes(node))) for node in nodes)
