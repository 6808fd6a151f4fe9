"""Named points at which a producer dies: calls in the product's code, which does not know of them.

They are wrapped in the process that is to die (`dying.py`), before it starts.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from producers.session.loop import Timing

Condition = Callable[..., bool]


def _always(*_: Any, **__: Any) -> bool:
    return True


def _has_records(relay: Any) -> bool:
    return bool(relay.pending)


def _in_mid_transaction(session: Any, *_: Any, **__: Any) -> bool:
    return session._capture._begin is not None


def _behind_a_copy_phase(_session: Any, until: Any, *_: Any, **__: Any) -> bool:
    return until is not None


def _back_to_copying(session: Any, until: Any, *_: Any, **__: Any) -> bool:
    return until is not None and session._copying


def _all_copied(_session: Any, until: Any, *_: Any, **__: Any) -> bool:
    return until is None


def _by_key(_connection: Any, _table: Any, bounds: Any, *_: Any, **__: Any) -> bool:
    return bool(bounds.keys)


@dataclass(frozen=True, slots=True)
class Point:
    """A call, `module:function` or `module:Class.method` as its caller looks it up, and whether to die after it.

    Calls for whose arguments `when` is false are not counted; with `once` a process makes at most one. `tunes` are
    module constants to change, so that a test reaches what is rare with their real values.
    """

    at: str
    behind: bool = False
    when: Condition = _always
    once: bool = False
    tunes: Mapping[str, Any] = field(default_factory=dict)


_SHORT_PHASES: Final = {"producers.session.service:USUAL": Timing(copy_seconds=0.05)}
_SMALL_COMMITS: Final = {"producers.session.service:USUAL": Timing(commit_events=50)}

POINTS: Final[Mapping[str, Point]] = {
    # A start.
    "publication set": Point("producers.session.acquire:ensure_publication", behind=True, once=True),
    "slot made, nothing recorded": Point("producers.source.slots:create", behind=True, once=True),
    "fenced, nothing claimed": Point("producers.session.opening:claim", once=True),
    "claimed, not reading": Point("producers.session.opening:claim", behind=True, once=True),
    # A copy phase.
    "chunk read": Point("producers.session.copy_phase:read_chunk", behind=True),
    "chunk added, not committed": Point("producers.publish.table_publisher:TableFeed.add_chunk", behind=True),
    # A row that is read by key.
    "row noted, not read": Point("producers.session.copy_phase:read_chunk", when=_by_key),
    "row read, not committed": Point("producers.publish.table_publisher:TableFeed.add_rows", behind=True),
    # The way into Kafka, and back to the slot.
    "before Kafka's commit": Point("producers.publish.kafka_transaction:Relay.commit", when=_has_records),
    "after Kafka's commit": Point("producers.publish.kafka_transaction:Relay.commit", behind=True),
    "before the confirmation": Point("producers.stream.connection:ReplicationStream.confirm"),
    "after the confirmation": Point("producers.stream.connection:ReplicationStream.confirm", behind=True),
    # A change of phase.
    "from copy to stream": Point(
        "producers.session.loop:Session._stream_phase", when=_behind_a_copy_phase, tunes=_SHORT_PHASES
    ),
    "from stream to copy": Point(
        "producers.session.loop:Session._stream_phase", behind=True, when=_back_to_copying, tunes=_SHORT_PHASES
    ),
    "all copied": Point("producers.session.loop:Session._stream_phase", when=_all_copied, once=True),
    # A large transaction.
    "in progress, some on disk": Point("producers.stream.spill:Spill._write", behind=True),
    "committed, not read back": Point("producers.stream.spill:Spill.read"),
    "half of it published": Point(
        "producers.session.loop:Session._commit", behind=True, when=_in_mid_transaction, tunes=_SMALL_COMMITS
    ),
    "read back, not forgotten": Point("producers.stream.spill:Spill.discard"),
    # A re-snapshot, also from scratch.
    "request taken, not recorded": Point("producers.session.snapshot_requests:Requests.take", behind=True, once=True),
    "topic emptied, not committed": Point(
        "producers.publish.table_publisher:TableFeed.restart_from_scratch", behind=True, once=True
    ),
}
"""Every named failpoint. A re-snapshot's chunk passes those of a copy phase too."""


@dataclass(frozen=True, slots=True)
class Arming:
    """Die at the `times`-th call of a point, or `delay` seconds after that call began."""

    point: str
    times: int = 1
    delay: float = 0.0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(arming: Arming) -> None:
    """Make this process die there."""
    point = POINTS[arming.point]
    for place, value in point.tunes.items():
        setattr(*_found(place), value)
    calls = itertools.count(1)

    def reached() -> None:
        if next(calls) != arming.times:
            return
        if not arming.delay:
            _die()
        threading.Timer(arming.delay, _die).start()

    def around(inner: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if not point.behind and point.when(*arguments, **named):
            reached()
        result = inner(*arguments, **named)
        if point.behind and point.when(*arguments, **named):
            reached()
        return result

    wrap(point.at, around)


def wrap(place: str, around: Callable[..., Any]) -> None:
    """Put `around(call, *arguments, **named)` in place of every call."""
    owner, name = _found(place)
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return around(inner, *arguments, **named)

    setattr(owner, name, wrapped)


def _found(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    getattr(owner, name)  # a point whose code was removed fails here, instead of never being reached
    return owner, name
