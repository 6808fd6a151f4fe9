"""Faults: their kinds, and the threads that inject them at random until stopped."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from tests.chaos.path.namespaces import Network
from tests.chaos.path.targets import BROKER, CONSUMER, PRIMARY, PRODUCER, REGISTRY, ROLES, STANDBY, Target

KILLED: Final = "killed"
FROZEN: Final = "frozen"
RESTARTED: Final = "restarted"
CUT_OFF: Final = "cut off"
LOSSY: Final = "packets dropped"
SLOW: Final = "slow link"

KINDS: Final = (KILLED, FROZEN, RESTARTED, CUT_OFF, LOSSY, SLOW)
_OF_THE_NETWORK: Final = (CUT_OFF, LOSSY, SLOW)

_WEIGHTS: Final = {PRODUCER: 5, CONSUMER: 6, BROKER: 4, PRIMARY: 2, STANDBY: 4, REGISTRY: 2}
_SECONDS: Final = {PRODUCER: 5.0, CONSUMER: 5.0, BROKER: 4.0, PRIMARY: 2.5, STANDBY: 4.0, REGISTRY: 3.0}
"""Maximum duration of a fault, by role."""
_PAUSE: Final = (0.05, 0.8)
_RECOVERY_SECONDS: Final = 45.0
"""A role is disturbed again after this time even without progress."""


class Happened(NamedTuple):
    """A fault that was over at `ended`, in seconds since the epoch."""

    kind: str
    role: str
    began: float
    ended: float


class Faults:
    """Injects faults, `threads` at a time, from `start` to `stop`; `happened` lists them.

    At most one target of each role is disturbed at a time, except consumers, so that two of three brokers always run. A
    target is not disturbed again before `progress` has changed since its last fault, since a process that only ever
    starts proves nothing; so a slow machine has fewer faults. `weights` and `kinds` say what may be drawn.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        network: Network | None,
        seed: int,
        progress: Callable[[], object],
        *,
        threads: int = 4,
        weights: Mapping[str, float] = _WEIGHTS,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        self.happened: list[Happened] = []
        self.error: BaseException | None = None
        self._targets = {role: [target for target in targets if target.role == role] for role in ROLES}
        self._network = network
        self._progress = progress
        self._last: dict[str, tuple[float, object]] = {}
        """Role, or consumer → when its last fault was over, and the progress then."""
        self._kinds = [kind for kind in kinds if network is not None or kind not in _OF_THE_NETWORK]
        self._weights = {role: weight for role, weight in weights.items() if self._targets[role]}
        self._disturbed = {target.node: threading.Lock() for target in targets if target.role == CONSUMER}
        self._disturbed |= {role: threading.Lock() for role in ROLES}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(random.Random(f"{seed}/faults/{number}"),), daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start injecting faults."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise the error that kept a fault from being repaired, if any."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Stop, with every fault repaired; raise the error that prevented a repair, if any."""
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self.check()

    def _guarded(self, draw: random.Random) -> None:
        try:
            while not self._over.wait(draw.uniform(*_PAUSE)):
                self._one(draw)
        except BaseException as error:
            self.error = error

    def _one(self, draw: random.Random) -> None:
        roles, weights = zip(*self._weights.items(), strict=True)
        (role,) = draw.choices(roles, weights)
        kind = draw.choice(self._kinds)
        seconds = _SECONDS[role] * draw.random() ** 2
        target = draw.choice(self._targets[role])
        alone = target.node if role == CONSUMER else role
        if not self._has_recovered(alone) or not self._disturbed[alone].acquire(blocking=False):
            return
        try:
            began = time.time()
            with self._happening(kind, target, draw):
                self._over.wait(seconds)
            self.happened.append(Happened(kind, role, began, time.time()))
            self._last[alone] = time.monotonic(), self._progress()
        finally:
            self._disturbed[alone].release()

    def _has_recovered(self, alone: str) -> bool:
        over, progress = self._last.get(alone, (0.0, None))
        return self._progress() != progress or time.monotonic() > over + _RECOVERY_SECONDS

    @contextlib.contextmanager
    def _happening(self, kind: str, target: Target, draw: random.Random) -> Iterator[None]:
        begin, repair = self._acts(kind, target, draw)
        begin()
        try:
            yield
        finally:
            repair()

    def _acts(self, kind: str, target: Target, draw: random.Random) -> tuple[Callable[[], None], Callable[[], None]]:
        if kind == KILLED:
            return target.kill, target.begin
        if kind == RESTARTED:
            return target.end, target.begin
        if kind == FROZEN:
            return target.freeze, target.thaw
        network, node = self._network, target.node
        assert network is not None
        if kind == CUT_OFF:
            return lambda: network.cut(node), lambda: network.heal(node)
        if kind == LOSSY:
            percent = draw.choice((5, 15, 40))
            return lambda: network.lose(node, percent), lambda: network.heal(node)
        return lambda: network.slow(node, draw.choice((200, 1_000)), 400), lambda: network.heal(node)
