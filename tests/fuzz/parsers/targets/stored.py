"""Reads headrace's stored records, which other programs may have overwritten: positions, schemas and dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from consumers.delivery import dead_letter_topic
from infra.schema_registry.topic_registry import _entry
from infra.state.positions import HandoverState, PartitionState, SnapshotState, StrayState, StreamState, decode, encode
from schemas.errors import HeadraceError, Malformed
from schemas.formats import NewerFormat
from schemas.positions import Lsn
from tests.fuzz.parsers.target import Target, Violation, agree, outcome, pack, unpack

_STREAM: Final = StreamState(
    source="main",
    instance="i",
    slot="s",
    system_identifier="1",
    commit_lsn=Lsn(1),
    ordinal=0,
    confirmed_lsn=Lsn(1),
    ts_ms=0,
    unseen=(1, 2),
)
_SNAPSHOT: Final = SnapshotState(
    source="main", table="public.t", topic="p.gitlab_main.t", partitions=(PartitionState(1, "l", 2),)
)
_STRAY: Final = StrayState(source="main", table="public.t", gitlab_schema="gitlab_main", since_ms=1)
_HANDOVER: Final = HandoverState(
    source="main",
    gitlab_schema="gitlab_main",
    owner="ci",
    epoch=2,
    commit_lsn=Lsn(5),
    ordinal=0,
    confirmed_lsn=Lsn(5),
    snapshots=(_SNAPSHOT,),
)
_STATES: Final[tuple[Any, ...]] = (_STREAM, _SNAPSHOT, _STRAY, _HANDOVER)


class _Letter:
    """A Kafka message of the dead letters topic."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def headers(self) -> list[tuple[str, bytes]]:
        names = (
            dead_letter_topic.FORMAT_HEADER,
            dead_letter_topic.REASON_HEADER,
            dead_letter_topic.RUN_HEADER,
            dead_letter_topic.KEY_HEADER,
        )
        return list(zip(names, self._parts, strict=False))

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000

    def value(self) -> bytes:
        return b"value"


def _run(data: bytes) -> None:
    if not data:
        return
    number, value = data[0], data[1:]
    if number % 6 == 4:
        outcome(HeadraceError, _entry, value, "record 1")
    elif number % 6 == 5:
        key, *parts = unpack(value) or [b""]
        letter: Any = _Letter(parts)
        outcome(HeadraceError, dead_letter_topic._entry, key, letter)
    else:
        _position(type(_STATES[number % 6 % 4]), value)


def _position(kind: Any, value: bytes) -> None:
    try:
        state = decode(kind, "main", value)
    except NewerFormat:
        if json.loads(value)["format"] <= 1:
            raise Violation("a record is refused as newer but is not") from None
    except Malformed:
        pass
    else:
        agree("a state and itself", state, decode(kind, "main", encode(state)))


def _seeds() -> Iterator[bytes]:
    for number, state in enumerate(_STATES):
        yield bytes((number,)) + encode(state)
    yield b"\x04" + json.dumps({"subject": "s", "schema": "{}", "format": 1}).encode()
    yield b"\x05" + pack([b"main/t/0/5/1", b"1", b"a reason", b"1", b"key"])


TARGET = Target(
    "records that headrace stored",
    _run,
    _seeds,
    dictionary=(b'"format":', b"2", b"null", b"[", b"]", b"{", b"}", b'"', b",", b"/", b"1e9", b"Infinity", b"NaN"),
)
