"""Moves gitlab schemas to another database: from a primary to a physical copy of it, which is promoted on the way.

What was done is read from the databases themselves, what comes next is decided by move_rules, and each step is one
transaction on one side: so a switchover that died anywhere is completed by starting it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from uuid import uuid4

import psycopg

from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, holders, ownership_key
from infra.service import log
from infra.settings.model import Settings
from producers.source import slots
from producers.switchover import proofs, rules
from producers.switchover.endpoints import Changes, Move, NotMovable, View, require_settings, side, write
from producers.switchover.new_slot import drop_leftover
from producers.switchover.rules import Refusal, Step
from producers.switchover.states import EndsState, ends_state
from producers.switchover.step_limit import Busy, StepLimit
from schemas.errors import HeadraceError
from schemas.gitlab_schemas import GITLAB_SHARED

_LOCK: Final = 0x7377697463686F76
"""The advisory lock of a switchover, on the old owner: "switchov" in ASCII."""
_FENCE: Final = 0x7377697463686F77
"""The one on the new owner, which whoever has the other takes from an earlier switchover."""
_LOCK_LOOKS: Final = 200
_POLL_SECONDS: Final = 0.05
_TRY_MS: Final = 2_000
"""How long a change of owner waits for transactions under way before it lets others in again for a moment."""

_LOCK_OWNERS: Final = "LOCK TABLE headrace.schema_ownership IN EXCLUSIVE MODE"
"""For an application's own guard, which has a row FOR SHARE: it queues fairly behind those."""

_ABORT_AGAIN: Final = "run it with --abort again, which takes back what is left; without --abort it would close again"


class PastNoReturn(NotMovable):
    """Complete it by running the switchover again: the copy was promoted, and has the data from there on."""


class Switchover:
    """A move under way; made by `opened`. Only `run` and `abort` change anything."""

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
    ) -> None:
        self._settings = settings
        self.move = move
        self._connections = {move.source: old, move.destination: new}
        self._limit = limit
        self._promotes = promote
        self._without = without
        self._log = log.get(gitlab_schemas=list(move.gitlab_schemas))

    @property
    def source_slot(self) -> str:
        """The slot of the old owner's producer, perhaps synchronized to the copy."""
        return slots.slot_name(self._settings, self.move.source, self._settings.database(self.move.source))

    @property
    def slot(self) -> str:
        """The slot of the new owner's producer."""
        return slots.slot_name(self._settings, self.move.destination, self._settings.database(self.move.destination))

    def look(self) -> View:
        """Return how both sides are; what that means is for move_rules. Changes nothing."""
        move = self.move
        captures = bool(self._settings.database(move.destination).tables)
        with self._on(move.source) as old, self._on(move.destination) as new:
            same = proofs.same_server(old, new)
            with old.transaction():
                left = side(old, move.source)
            with new.transaction():
                right = side(new, move.destination)
            slot = None if right.standby else slots.read(new, self.slot)
            has_slot = not captures or (slot is not None and slot.ready)
        return View(move, left, right, same, has_slot)

    def require_possible(self) -> tuple[View, Step | None]:
        """Return how both sides are and the step that is next; raises NotMovable where `run` would do nothing."""
        view = self.look()
        step = rules.next_step(view)
        if isinstance(step, Refusal):
            raise NotMovable(step.problem, remedy=step.remedy)
        return view, step

    def run(self, after: Callable[[str], None] | None = None) -> View:
        """Do every step that does not hold yet; `after`, if any, is called with the name of each that holds then.

        Raises NotMovable where one cannot be done, Busy where one took too long, Interrupted when stopped. What was
        done stays done.
        """
        with self._alone(None):
            last: Step | None = None
            said: set[Step] = set()
            while True:
                with self._limit.step(None):
                    view, step = self.require_possible()
                    for each in Step:
                        if each in rules.done_steps(view) - said:
                            said.add(each)
                            self._log.info("done", step=each.name.lower())
                            if after is not None:
                                after(each.name.lower())
                    if step is None:
                        return view
                    if step is last:
                        raise Busy(f"step {step.name.lower()} did not last: {step.value} no more")
                    _STEPS[step](self, view)
                last = step

    def abort(self) -> View:
        """Give the gitlab schemas back to the old owner and wait until the copy has that; again, it does nothing.

        Raises NotMovable, with nothing changed, where one of them cannot be taken back: PastNoReturn if it was given
        to a promoted copy.
        """
        with self._alone(_ABORT_AGAIN), self._limit.step(_ABORT_AGAIN):
            view = self._abortable()
            if rules.taking_back(view).owners:
                if ends_state(view) is EndsState.STANDBY:
                    self._require_following()
                self._alter((self.move.source,), lambda: rules.taking_back(self._abortable()))
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
        with connect.translated(self._settings.database(name).dsn.get_secret_value()):
            yield self._connections[name]

    # -- steps -------------------------------------------------------------------------------------------------------

    def _close(self, view: View) -> None:
        with self._on(self.move.source) as old, self._on(self.move.destination) as new:
            proofs.require_rights(old, new, promotes=self._promotes)
            proofs.require_publication(old, self.move.source, self._settings.database(self.move.source).publication)
        # What cannot follow, and a standby that could take the close away, are found out while nothing is closed yet.
        self._confirm(view)
        self._alter((self.move.source,), lambda: self._if_still(Step.CLOSE, self._closing))

    def _closing(self, view: View) -> Changes:
        return rules.closing(view, uuid4)

    def _replay(self, _view: View) -> None:
        self._limit.waiting_for = f"{self.move.destination} to replay that it was given them"
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

    def _make_slot(self, _view: View) -> None:
        """Make the new producer's slot while nobody can write what it is for, so that it misses nothing.

        Where the old producer's slot was synchronized, it is a copy of that, which begins before the change of owner.
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
        self._log.info("slot made", slot=self.slot, synchronized=taken_over)

    def _claim(self, view: View) -> None:
        self._confirm(view)
        self._alter(
            (self.move.destination,), lambda: self._if_still(Step.CLAIM, lambda seen: rules.claiming(seen, uuid4))
        )

    def _release(self, view: View) -> None:
        """Confirmed before, since it cannot be taken back; and before the copy is opened, since it must not be lost."""
        self._confirm(view)
        self._alter((self.move.source,), lambda: self._if_still(Step.RELEASE, rules.releasing))

    def _open(self, view: View) -> None:
        self._confirm(view)
        shared = GITLAB_SHARED in self._settings.database(self.move.destination).gitlab_schemas
        self._alter(
            (self.move.source, self.move.destination),
            lambda: self._if_still(Step.OPEN, lambda seen: rules.opening(seen, shared=shared)),
        )
        with self._on(self.move.destination) as connection:
            left = slots.read(connection, self.source_slot) if self.source_slot != self.slot else None
            if left is not None and left.synced:
                slots.drop(connection, self.source_slot)  # nobody will read it here, and it would retain WAL

    # -- what the steps rest on ----------------------------------------------------------------------------------------

    def _if_still(self, step: Step, changes: Callable[[View], Changes]) -> Changes:
        """Return the changes by how both sides are now, under the locks; none where another step is next by now."""
        view = self.look()
        return changes(view) if rules.next_step(view) is step else Changes({}, {})

    def _alter(self, names: tuple[str, ...], changes: Callable[[], Changes]) -> None:
        """Write on the last of `names`, once every transaction that holds an ownership there has ended.

        The rows of all of them are locked meanwhile. Our own transactions share the advisory locks; whoever gets one
        next reads the owner afterwards. On the old side those of other gitlab schemas go on; the new side's name is
        about all of them.
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
                    write(connection, changes())
                return
            except HeadraceError as error:
                # A transaction that wrote several of them may wait for this one as this one waits for it.
                passing = psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected
                if not isinstance(error.__cause__, passing):
                    raise
                self._limit.waiting_for = f"transactions on {' and '.join(names)} to let go of its ownership"
                self._limit.pause(_POLL_SECONDS)

    def _confirm(self, view: View) -> None:
        """Wait until everything that the old side has committed is wherever its data is, and on the copy if it follows.

        A failover of the old side then loses none of it. A commit that did not wait to its end for a synchronous
        standby is as if it had not waited.
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
                # Once the copy is promoted its slot is idle; if another standby has taken that, it is asked.
                state = slots.read(old, copy) if copy else None
                known = {copy} if state is not None and (view.new.standby or state.active_pid is None) else set()
                behind = proofs.lagging_standbys(old, lsn, known=known | self._without)
            if not behind:
                break
            self._limit.waiting_for = (
                f"other standbys of {source} to have all that it wrote, since one without the change of owner could"
                f" take its place: {', '.join(behind)}. Bring it back, drop its slot if it is gone for good, or name it"
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
        """Keep other switchovers out, and end what an earlier one has left at work on the new owner."""
        with self._limit.step(remedy):
            self._take(self.move.source, _LOCK, self._refuse_other)
            self._take(self.move.destination, _FENCE, self._end_earlier)
        yield  # the locks end with the connections

    def _take(self, name: str, key: int, in_the_way: Callable[[psycopg.Connection[Any], int], None]) -> None:
        self._limit.waiting_for = f"an earlier switchover to let go of {name}"
        looks = 0
        while True:
            with self._on(name) as connection:
                if connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone() == (True,):
                    return
                in_the_way(connection, looks)
            looks += 1
            self._limit.pause(_POLL_SECONDS)

    def _refuse_other(self, connection: psycopg.Connection[Any], looks: int) -> None:
        """One that was killed lets go as soon as its server notices."""
        if looks >= _LOCK_LOOKS:
            raise NotMovable(
                f"another switchover runs: {', '.join(holders(connection, _LOCK)) or 'it has just ended'}",
                remedy="wait for it, or stop it and run this one again; if its command is gone, end the session with"
                f" pg_terminate_backend on {self.move.source}",
            )

    def _end_earlier(self, connection: psycopg.Connection[Any], _looks: int) -> None:
        """Only one whose session on the old owner was lost can still be there: it must do nothing more."""
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (classid::bigint << 32 | objid::bigint) = %s",
            (_FENCE,),
        )


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
) -> Iterator[Switchover]:
    """Connect to both sides; each step takes as long as `limit` allows.

    With `promote` off, somebody else promotes the copy. The standbys in `without`, by slot or application_name, are
    never to be promoted, and need not have the change of owner. Raises UsageError for a move that the settings don't
    know.
    """
    require_settings(settings, move)
    limit = limit or StepLimit()
    with ExitStack() as connections:
        sides = []
        for name in (move.source, move.destination):
            dsn = settings.database(name).dsn.get_secret_value()
            connection = connections.enter_context(connect.connect(dsn, name=f"switchover {name}"))
            limit.watch(connection)
            with connect.translated(dsn):
                # With it go its locks and a half-made slot.
                slots.end_with_the_client(connection)
            sides.append(connection)
        yield Switchover(settings, move, sides[0], sides[1], limit, promote=promote, without=without)
