"""Profiles `resets`: one consumer in this process with its stages timed, and its UPDATEs alone.

The UPDATEs change the same rows in the same transactions, without Kafka, fence or ledger: the database's own limit.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest.mock import patch

from consumers.commands.execution import process_tuning
from consumers.contract.decisions import Change
from consumers.contract.migration import Cursor
from consumers.delivery.group import Group
from consumers.ledger import fence
from consumers.ledger.progress import Ledger
from consumers.migrations.skip_resets import SkipResets, SkipResetsOptions
from consumers.planning.planner import Planner, SubBatch
from consumers.runtime.applying import Applying
from consumers.runtime.assembly import consumer_of
from consumers.runtime.consumer import Consumer
from schemas.errors import HeadraceError
from tests.benchmarks.bench import SOURCE, Bench, Site, median
from tests.benchmarks.cases.resets import UNIT, resets_site, restore
from tests.benchmarks.figures import Figure
from tests.benchmarks.ledger import replay_if_run

_WITHIN: Final = ("fence", "update", "ledger")
"""A transaction's stages, the fence with its begin; the rest of it is the commit."""


@dataclass
class Profile:
    """Seconds of each stage, by the clock and in its thread's processor time; `keys` are each UPDATE's."""

    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    keys: list[list[Any]] = field(default_factory=list)
    first: float = 0.0
    """When the first transaction ended, in seconds of the monotonic clock."""
    last: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's time to a stage."""
        wall, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self.wall[name] += time.monotonic() - wall
            self.cpu[name] += time.thread_time() - cpu
            self.calls[name] += 1

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, timed as a stage."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **keywords)

        return call

    def planned(self, plan: Callable[..., Iterator[SubBatch]]) -> Callable[..., Iterator[SubBatch]]:
        """Return a generator that does the same, with each item timed as a stage."""

        def items(*arguments: Any) -> Iterator[SubBatch]:
            made = plan(*arguments)
            while True:
                with self.stage("plan"):
                    item = next(made, None)
                if item is None:
                    return
                yield item

        return items

    def applied(self, apply: Callable[..., None]) -> Callable[..., None]:
        """Return a function that does the same transaction, timed as a stage, and records when it ended."""

        def transaction(runtime: Consumer, sub_batch: SubBatch) -> None:
            with self.stage("transaction"):
                apply(runtime, sub_batch)
            self.last = time.monotonic()
            self.first = self.first or self.last

        return transaction

    def opened(
        self, transaction: Callable[..., AbstractContextManager[Any]]
    ) -> Callable[..., AbstractContextManager[Any]]:
        """Return a context manager that does the same, with its beginning timed as a stage."""

        @contextlib.contextmanager
        def fenced(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            with contextlib.ExitStack() as stack:
                with self.stage("fence"):
                    held = stack.enter_context(transaction(*arguments, **keywords))
                yield held

        return fenced

    def updated(self, apply: Callable[..., int]) -> Callable[..., int]:
        """Return a function that does the same update, timed as a stage, and records its keys."""

        def update(migration: SkipResets, cursor: Cursor, changes: Sequence[Change]) -> int:
            self.keys.append([change.key for change in changes])
            with self.stage("update"):
                return apply(migration, cursor, changes)

        return update

    @property
    def rate(self) -> float:
        """Rows per second from the end of the first transaction to that of the last."""
        return sum(map(len, self.keys[1:])) / (self.last - self.first)

    def __str__(self) -> str:
        names = ("poll", "plan", "transaction", *_WITHIN)
        lines = [
            f"    {name:20}{self.wall[name]:6.2f} s, CPU {self.cpu[name]:5.2f} s, {self.calls[name]} times"
            for name in names
        ]
        around = self.wall["transaction"] - sum(self.wall[name] for name in _WITHIN)
        lines.append(f"    {'commit':20}{around:6.2f} s")
        lines.append(f"    {'all':20}{self.last - self.first:6.2f} s, {self.rate:,.0f} rows/s")
        return "\n".join(("", *lines))


def figures(bench: Bench) -> Iterator[Figure]:
    """Run the consumer, and then its UPDATEs alone."""
    site = resets_site(bench)
    profiles = bench.repeated("a consumer's stages", lambda _: _profiled(bench, site), str)
    alone = bench.repeated(
        "its UPDATEs alone", lambda run: _alone(bench, site, profiles[run].keys), "{:,.0f} rows/s".format
    )
    yield Figure("resets, share of the same UPDATEs alone", median(each.rate for each in profiles), UNIT, median(alone))


def _profiled(bench: Bench, site: Site) -> Profile:
    replay_if_run(site)
    profile = Profile()
    runtime = consumer_of(
        site.settings, SkipResets(SkipResetsOptions()), SOURCE, stopping=threading.Event(), until_caught_up=True
    )
    with contextlib.ExitStack() as patches:
        for owner, name, wrapped in (
            (Group, "poll", profile.timed("poll", Group.poll)),
            (Planner, "plan", profile.planned(Planner.plan)),
            (Applying, "_apply", profile.applied(Applying._apply)),
            (fence, "transaction", profile.opened(fence.transaction)),
            (SkipResets, "apply", profile.updated(SkipResets.apply)),
            (Ledger, "advance", profile.timed("ledger", Ledger.advance)),
        ):
            patches.enter_context(patch.object(owner, name, wrapped))
        process_tuning.tune()
        totals = runtime.run()
    if totals.applied != bench.rows // 3:
        raise HeadraceError(f"{totals.applied} rows were reset, where {bench.rows // 3} should have been")
    restore(bench, site)
    return profile


def _alone(bench: Bench, site: Site, keys: list[list[Any]]) -> float:
    """Return the rows per second of the same transactions, without the first, as for the consumer."""
    migration = SkipResets(SkipResetsOptions())
    changes = [[Change(key) for key in part] for part in keys]
    with bench.sql(site.dsn) as connection:
        connection.execute("SET synchronous_commit = off")  # as in a consumer's connection
        began = 0.0
        for part in changes:
            with connection.transaction(), connection.cursor() as cursor:
                migration.apply(cursor, part)
            began = began or time.monotonic()
        seconds = time.monotonic() - began
    restore(bench, site)
    return sum(map(len, keys[1:])) / seconds
