"""Parses texts written by operators and servers: LSNs, snapshots, a replay's start, key values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from consumers.operations.start_offsets import SinceLsn, parse_start
from consumers.planning.key_values import KeyKind, typed
from schemas.errors import UsageError
from schemas.positions import format_lsn, parse_lsn
from schemas.xid_snapshot import Snapshot
from tests.fuzz.parsers.target import Target, Violation, agree, outcome

_KINDS: Final = (
    *(KeyKind(name) for name in ("string", "boolean", "int", "long", "float", "double", "uuid", "date")),
    *(KeyKind(name) for name in ("time-micros", "timestamp-micros", "local-timestamp-micros")),
    KeyKind("decimal", 10, 2),
)


def _run(data: bytes) -> None:
    if not data:
        return
    text = data[1:].decode("utf-8", "replace")
    kind = _KINDS[data[0] % len(_KINDS)]
    found, value = outcome(UsageError, typed, "c", text, kind)
    if found == "value" and kind.name != "string":
        agree(f"a {kind.name} and itself", value, typed("c", str(value), kind))
    _, start = outcome(UsageError, parse_start, text)
    if isinstance(start, SinceLsn) and not 0 <= start.lsn < 1 << 64:
        raise Violation(f"not a 64-bit position: {start}")
    try:
        lsn = parse_lsn(text)
    except ValueError:
        pass
    else:
        agree("an LSN and itself", lsn, parse_lsn(format_lsn(lsn)))
    try:
        snapshot = Snapshot.parse(text)
    except ValueError:
        return
    agree("a snapshot and itself", snapshot, Snapshot.parse(str(snapshot)))


def _seeds() -> Iterator[bytes]:
    texts = (
        "16/B374D848",
        "795:799:795,797",
        "beginning",
        "timestamp:2026-01-31T12:00:00Z",
        "lsn:16/B374D848",
        "true",
        "-9223372036854775808",
        "1e300",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "0044-03-15 10:00:00.123 BC",
        "24:00:00",
        '"a ""b"""',
        "-0.00",
        "infinity",
        "2026-01-31 12:00:00.123456+00",
    )
    for number, text in enumerate(texts):
        for kind in {number % len(_KINDS), 0, len(_KINDS) - 1}:
            yield bytes((kind,)) + text.encode()


TARGET = Target(
    "texts of positions, snapshots and keys",
    _run,
    _seeds,
    dictionary=(b"lsn:", b"timestamp:", b"/", b":", b",", b"e", b"_", b"-", b" BC", b"+00", b"NaN", b"Infinity"),
    longest=256,
)
