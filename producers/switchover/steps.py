"""Moves gitlab schemas from a primary to a physical copy of it, which is promoted on the way.

The progress is read from the databases themselves, `rules` decides the next step, and each step is one transaction on
one side: a switchover that died at any point is completed by running it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final
from uuid import uuid4

import psycopg

from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.service import log
from infra.settings.model import Settings
from infra.state.history import Actor, operator
from producers.source import slots
from producers.switchover import proofs, rules
from producers.switchover.endpoints import (
    Changes,
    Move,
    NotMovable,
    View,
    record_found,
    record_step,
    require_settings,
    side,
    write,
)
from producers.switchover.new_slot import drop_leftover
from producers.switchover.other_switchovers import FENCE, LOCK, end_earlier, refuse_other
from producers.switchover.rules import Refusal, Step
from producers.switchover.states import EndsState, ends_state
from producers.switchover.step_limit import Busy, StepLimit
from schemas.errors import HeadraceError

_POLL_SECONDS: Final = 0.05
_TRY_MS: Final = 2_000
"""How long a change of owner waits for running transactions before it lets others in again for a moment."""

_LOCK_OWNERS: Final = "LOCK TABLE headrace.schema_ownership IN EXCLUSIVE MODE"
"""For an application's own guard, which locks a row FOR SHARE: this lock queues fairly after those."""

_ABORT_AGAIN: Final = "run it with --abort again to take back the rest; without --abort it would close them again"


class PastNoReturn(NotMovable):
    """Complete it by running the switchover again: the copy was promoted and has the current data."""


class Switchover:
    """A running move, created by `opened`. Only `run` and `abort` change anything."""

    def __init__(
        self,
        settings: Settings,
        move: Move,
        old: psycopg.Connection[Any],
        new: psycopg.Connection[Any],
        limit: StepLimit,
        *,
        promote: bool,
        without: frozenset[str],
        actor: Actor | None = None,
    ) -> None:
        self._actor = actor or operator()
        self._settings = settings
        self._captures = bool(settings.database(move.destination).tables)
        self.move = move
        self._connections = {move.source: old, move.destination: new}
        self._limit = limit
        self._promotes = promote
        self._without = without
        self._log = log.get(gitlab_schemas=list(move.gitlab_schemas))

    @property
    def source_slot(self) -> str:
        """The slot of the old owner's producer, which may be synchronized to the copy."""
        return slots.slot_name(self._settings, self.move.source, self._settings.database(self.move.source))

    @property
    def slot(self) -> str:
        """The slot of the new owner's producer."""
        return slots.slot_name(self._settings, self.move.destination, self._settings.database(self.move.destination))

    def look(self) -> View:
        """Return the state of both sides, for `rules` to judge. Changes nothing."""
        move = self.move
        with self._on(move.source) as old, self._on(move.destination) as new:
            same = proofs.same_server(old, new)
            with old.transaction():
                left = side(old, move.source)
            with new.transaction():
                right = side(new, move.destination)
            slot = None if right.standby else slots.read(new, self.slot)
            has_slot = not self._captures or (slot is not None and slot.ready)
        return View(move, left, right, same, has_slot)

    def require_possible(self) -> tuple[View, Step | None]:
        """Return the state of both sides and the next step; raises NotMovable when `run` would do nothing."""
        view = self.look()
        step = rules.next_step(view)
        if isinstance(step, Refusal):
            raise NotMovable(step.problem, remedy=step.remedy)
        return view, step

    def run(self, after: Callable[[str], None] | None = None) -> View:
        """Do every step that is not done yet; `after`, if any, is called with the name of each step that is done.

        Raises NotMovable when a step is not possible, Busy when it times out, Interrupted when stopped. Steps that were
        done stay done.
        """
        with self._alone(None):
            last: Step | None = None
            logged: set[Step] = set()
            while True:
                with self._limit.step(None):
                    view, step = self.require_possible()
                    for each in Step:
                        if each in rules.done_steps(view) - logged:
                            logged.add(each)
                            self._log.info("step done", step=each.name.lower())
                            if after is not None:
                                after(each.name.lower())
                    if step is None:
                        return view
                    if step is last:
                        raise Busy(f"step {step.name.lower()} was undone: no longer {step.value}")
                    _STEPS[step](self, view)
                last = step

    def abort(self) -> View:
        """Give the gitlab schemas back to the old owner and wait until the copy has replayed that. Idempotent.

        Raises NotMovable, with nothing changed, when one of them cannot be taken back: PastNoReturn if it was given to
        a promoted copy.
        """
        with self._alone(_ABORT_AGAIN), self._limit.step(_ABORT_AGAIN):
            view = self._abortable()
            if rules.taking_back(view).owners:
                if ends_state(view) is EndsState.STANDBY:
                    self._require_following()
                self._alter("abort", (self.move.source,), lambda: rules.taking_back(self._abortable()))
            self._limit.waiting_for = f"{self.move.destination} to replay that {self.move.source} has them back"
            while True:
                view = self.look()
                if not view.new.standby or self._has_records(view):
                    return view
                self._limit.pause(_POLL_SECONDS)

    def _has_records(self, view: View) -> bool:
        return all(view.new.records.get(each) == view.old.records.get(each) for each in self.move.gitlab_schemas)

    def _abortable(self) -> View:
        view = self.look()
        if (refusal := rules.refused_abort(view)) is not None:
            given = refusal.courses[0].way is rules.Way.RUN
            kind = PastNoReturn if given else NotMovable
            raise kind(refusal.problem, remedy=refusal.remedy)
        return view

    @contextmanager
    def _on(self, name: str) -> Iterator[psycopg.Connection[Any]]:
        with connect.translated(self._settings.database(name).address):
            yield self._connections[name]

    # -- steps -------------------------------------------------------------------------------------------------------

    def _close(self, view: View) -> None:
        with self._on(self.move.source) as old, self._on(self.move.destination) as new:
            proofs.require_rights(old, new, promotes=self._promotes)
            proofs.require_publication(old, self.move.source, self._settings.database(self.move.source).publication)
        # Before the close: check that the copy follows, and that no standby could be promoted without the close.
        self._confirm(view)
        self._alter("close", (self.move.source,), lambda: self._if_still(Step.CLOSE, self._closing))

    def _closing(self, view: View) -> Changes:
        return rules.closing(view, uuid4)

    def _replay(self, _view: View) -> None:
        self._limit.waiting_for = f"{self.move.destination} to replay the change of owner"
        while rules.next_step(self.look()) is Step.REPLAY:
            self._limit.pause(_POLL_SECONDS)

    def _promote(self, view: View) -> None:
        self._confirm(view)
        if not self._promotes:
            raise NotMovable(
                f"{self.move.destination} is still a standby",
                remedy="promote it with your own tooling, then run the same command again",
            )
        self._limit.waiting_for = f"{self.move.destination} to be promoted"
        with self._on(self.move.destination) as connection:
            row = connection.execute("SELECT pg_promote(true, %s)", (max(1, int(self._limit.seconds)),)).fetchone()
        if row != (True,):
            raise Busy(f"{self.move.destination} was not promoted within {self._limit.seconds:.0f} s")
        with self._on(self.move.destination) as connection:
            record_step(connection, self.move, "promote", self._actor)

    def _make_slot(self, _view: View) -> None:
        """Create the new producer's slot while no session can write its gitlab schemas, so that it misses nothing.

        If the old producer's slot was synchronized, the new one is a copy of it, and begins before the change of owner.
        """
        with self._on(self.move.destination) as connection:
            drop_leftover(connection, self.slot, self._limit)
            synced = slots.read(connection, self.source_slot)
            taken_over = synced is not None and synced.synced and synced.ready
            self._limit.waiting_for = f"slot {self.slot} on {self.move.destination}"
            running = proofs.waited_for(connection)
            if running:
                self._limit.waiting_for += f", which waits for {', '.join(running)}"
            if taken_over and self.source_slot != self.slot:
                slots.take_over(connection, self.source_slot, self.slot)
            else:
                slots.create(connection, self.slot, failover=True, stop=self._limit.stop)
            record_step(connection, self.move, "slot", self._actor)
        self._log.info("slot created", slot=self.slot, synchronized=taken_over)

    def _claim(self, view: View) -> None:
        self._confirm(view)
        self._alter(
            "claim",
            (self.move.destination,),
            lambda: self._if_still(Step.CLAIM, lambda seen: rules.claiming(seen, uuid4)),
            found=("promote", "slot") if self._captures else ("promote",),
        )

    def _release(self, view: View) -> None:
        """Release after a confirmation, since it cannot be taken back, and before the opening: it must not be lost."""
        self._confirm(view)
        self._alter("release", (self.move.source,), lambda: self._if_still(Step.RELEASE, rules.releasing))

    def _open(self, view: View) -> None:
        self._confirm(view)
        listed = self._settings.database(self.move.destination).gitlab_schemas
        self._alter(
            "open",
            (self.move.source, self.move.destination),
            lambda: self._if_still(Step.OPEN, lambda seen: rules.opening(seen, listed)),
        )
        with self._on(self.move.destination) as connection:
            left = slots.read(connection, self.source_slot) if self.source_slot != self.slot else None
            if left is not None and left.synced:
                slots.drop(connection, self.source_slot)  # no producer reads it here, and it would retain WAL

    # -- what the steps rest on ----------------------------------------------------------------------------------------

    def _if_still(self, step: Step, changes: Callable[[View], Changes]) -> Changes:
        """Return the changes for the current state of both sides, under the locks; none if another step is next now."""
        view = self.look()
        return changes(view) if rules.next_step(view) is step else Changes({}, {})

    def _alter(
        self, step: str, names: tuple[str, ...], changes: Callable[[], Changes], found: tuple[str, ...] = ()
    ) -> None:
        """Write on the last of `names` once every transaction that holds an ownership there has ended; record the step.

        The ownership rows on all of `names` are locked meanwhile. headrace's own transactions share the advisory locks;
        one that gets a lock later reads the owner after that. On the old side transactions of other gitlab schemas
        continue; the new side's name concerns all of them.
        """
        while True:
            try:
                with ExitStack() as locked:
                    for name in names:
                        connection = locked.enter_context(self._on(name))
                        locked.enter_context(connection.transaction())
                        connection.execute(f"SET LOCAL lock_timeout = {_TRY_MS}")
                        connection.execute("SET LOCAL synchronous_commit = local")
                        old = name == self.move.source
                        held = self.move.gitlab_schemas if old else side(connection, name).owners
                        exclude(connection, map(ownership_key, held))
                        connection.execute(_LOCK_OWNERS)
                    if (changed := changes()) != Changes({}, {}):
                        write(connection, changed)
                        record_found(connection, self.move, found, self._actor)
                        record_step(connection, self.move, step, self._actor)
                return
            except HeadraceError as error:
                # A transaction that wrote several gitlab schemas may wait for this one while this one waits for it.
                passing = psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected
                if not isinstance(error.__cause__, passing):
                    raise
                self._limit.waiting_for = f"transactions on {' and '.join(names)} to release their ownership locks"
                self._limit.pause(_POLL_SECONDS)

    def _confirm(self, view: View) -> None:
        """Wait until all the old side's commits are on each of its standbys, and on the copy if that still follows.

        A failover of the old side then loses none of them. A commit whose wait for a synchronous standby was cancelled
        counts as one that did not wait.
        """
        source, destination = self.move.source, self.move.destination
        self._limit.waiting_for = f"the synchronous standbys of {source} (synchronous_standby_names)"
        with self._on(source) as old:
            value, lsn = proofs.write_probe(old, synchronous=True)
        self._limit.check()
        with self._on(destination) as new:
            copy = proofs.own_slot(new)
        while True:
            with self._on(source) as old:
                # Once the copy is promoted its slot is idle; if another standby uses the slot, that one is checked.
                state = slots.read(old, copy) if copy else None
                known = {copy} if state is not None and (view.new.standby or state.active_pid is None) else set()
                behind = proofs.lagging_standbys(old, lsn, known=known | self._without)
            if not behind:
                break
            self._limit.waiting_for = (
                f"other standbys of {source} to receive all its WAL, since one without the change of owner could"
                f" be promoted: {', '.join(behind)}. Bring it back, drop its slot if it is gone for good, or name it"
                " with --without-standby if it is never promoted"
            )
            self._limit.pause(_POLL_SECONDS)
        if view.new.standby:
            self._await_probe(value)

    def _require_following(self) -> None:
        with self._on(self.move.source) as old:
            value, _ = proofs.write_probe(old, synchronous=False)
        self._await_probe(value)

    def _await_probe(self, value: Any) -> None:
        source, destination = self.move.source, self.move.destination
        self._limit.waiting_for = f"{destination} to replay what {source} writes now (is it a standby of {source}?)"
        while True:
            with self._on(destination) as new:
                if proofs.has_probe(new, value):
                    return
            self._limit.pause(_POLL_SECONDS)

    @contextmanager
    def _alone(self, remedy: str | None) -> Iterator[None]:
        """Exclude other switchovers, and terminate an earlier one's session on the new owner."""
        with self._limit.step(remedy):
            self._take(self.move.source, LOCK, partial(refuse_other, self.move.source))
            self._take(self.move.destination, FENCE, end_earlier)
        yield  # the locks end with the connections

    def _take(self, name: str, key: int, in_the_way: Callable[[psycopg.Connection[Any], int], None]) -> None:
        self._limit.waiting_for = f"an earlier switchover to release {name}"
        looks = 0
        while True:
            with self._on(name) as connection:
                if connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone() == (True,):
                    return
                in_the_way(connection, looks)
            looks += 1
            self._limit.pause(_POLL_SECONDS)


_STEPS: Final[dict[Step, Callable[[Switchover, View], None]]] = {
    Step.CLOSE: Switchover._close,
    Step.REPLAY: Switchover._replay,
    Step.PROMOTE: Switchover._promote,
    Step.SLOT: Switchover._make_slot,
    Step.CLAIM: Switchover._claim,
    Step.RELEASE: Switchover._release,
    Step.OPEN: Switchover._open,
}


@contextmanager
def opened(
    settings: Settings,
    move: Move,
    limit: StepLimit | None = None,
    *,
    promote: bool = True,
    without: frozenset[str] = frozenset(),
    actor: Actor | None = None,
) -> Iterator[Switchover]:
    """Connect to both sides; each step takes as long as `limit` allows.

    With `promote` off, the operator's tooling promotes the copy. The standbys in `without`, by slot or
    application_name, are never promoted, and may lack the change of owner. Raises UsageError for a move that the
    settings do not allow.
    """
    require_settings(settings, move)
    limit = limit or StepLimit()
    with ExitStack() as connections:
        sides = []
        for name in (move.source, move.destination):
            address = settings.database(name).address
            connection = connections.enter_context(connect.connect(address, name=f"switchover {name}"))
            limit.watch(connection)
            with connect.translated(address):
                # The session's locks and its incomplete slot then end with it.
                slots.end_with_the_client(connection)
            sides.append(connection)
        yield Switchover(settings, move, sides[0], sides[1], limit, promote=promote, without=without, actor=actor)
