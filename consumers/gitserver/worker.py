"""Moves repositories in one consumer: chooses the next move, paces the moves, and handles their failures.

A partition is worked on by one consumer at a time (locks.py). moves.py has the steps of a single move, states.py its
recorded states, and cursors.py the cursors by which readers are routed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from consumers.contract.external import Outside, Pace
from consumers.gitserver import cursors, states
from consumers.gitserver.cursors import Direction
from consumers.gitserver.locks import partition_lock
from consumers.gitserver.moves import Moves
from consumers.gitserver.readiness import require
from consumers.gitserver.runs import begin
from consumers.gitserver.states import Move, State
from consumers.repositories.git import GitFailed, NoRoom, Steps, remove
from consumers.repositories.storage import NotAPlace, roots_of
from infra.service import log
from schemas.errors import HeadraceError

_CHUNK_SECONDS: Final = 5.0
"""How long to copy before the cursor passes the copies."""
_REST_SECONDS: Final = (0.1, 1.0)
"""The pause when no step is due: first and longest, doubled each time."""
_LOOK_SHARE: Final = 20.0
"""The query for unrecorded names may take one part in so many of the time."""
_IN_A_ROW: Final = 10
_SLOW_SECONDS: Final = 1.0
_SLOWEST_SECONDS: Final = 60.0
"""The pause before the next move after so many in a row were given up: first and longest, doubled each time."""
_LOG_SECONDS: Final = 10.0
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_MACHINE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ENOTCONN)
"""Errors of the machine rather than of a repository; with them, every move would be given up."""

Step = Callable[[Move], Steps[bool]]
"""A step of a move; returns False if it has to wait."""


class MachineFailed(HeadraceError):
    """Repair the machine, then start the consumer again: nothing is lost."""


class Mover:
    """Moves repositories for one consumer while its generator is driven. Raises the problems found by readiness.py."""

    def __init__(
        self, outside: Outside, direction: Direction, *, at_once: int, tries: int, retry_seconds: float, seconds: float
    ) -> None:
        gitserver = outside.settings.gitserver
        require(gitserver)
        self._outside = outside
        self._direction = direction
        self._at_once = at_once
        self._tries = tries
        self._retry_seconds = retry_seconds
        self._known = 1.5 * gitserver.refresh_seconds
        self._grace = gitserver.grace_seconds
        self._nodes, self._pins = gitserver.nodes, gitserver.pins
        self._roots = roots_of(gitserver)
        self._moves = Moves(outside, direction, self._roots, seconds=seconds)
        self._begin_from = 0.0
        self._look_from = self._tell_from = self._patient_until = 0.0
        self._failed_in_a_row = 0
        self._log = log.get(migration="rehash_moves")

    def work(self) -> Iterator[Pace]:
        """See Migration.work."""
        with self._outside.transaction() as cursor:
            begin(cursor, self._outside.run, self._direction, self._nodes, self._pins, copies=self._moves.nodes_with)
        yield from self._sweep()
        rest = _REST_SECONDS[0]
        while True:
            yield from self._moves.lenders.look()
            partitions, done = states.to_visit(self._outside.session, self._direction is Direction.FORWARD)
            moved = 0
            # Waiting for the pace in one partition delays the other partitions no longer than this.
            self._patient_until = time.monotonic() + _CHUNK_SECONDS
            for partition in partitions:
                with partition_lock(self._outside.session, partition) as ours:
                    if ours:
                        moved += yield from self._visit(partition)
                        self._tell(moved)
                yield Pace.BUSY
            if moved:
                rest = _REST_SECONDS[0]
                continue
            rested = time.monotonic() + rest
            rest = min(2 * rest, _REST_SECONDS[1])
            while True:
                yield Pace.DONE if done else Pace.WAITING
                if time.monotonic() >= rested:
                    break

    def _sweep(self) -> Steps[None]:
        """Handle leftovers without an open move, of a consumer that died or was away for too long."""
        for root in self._roots.values():
            lying = root.lying_about()
            with self._outside.transaction() as cursor:
                unowned = states.not_open(cursor, {place_hash for place_hash, _ in lying})
                # A possible only copy becomes a wanted move again.
                states.want_again(cursor, [one for one, path in lying if one in unowned and root.is_worth(path)])
            for place_hash, path in lying:
                if place_hash in unowned and not root.is_worth(path):
                    yield from remove(path)
                    self._log.info("leftovers removed", root=str(root.path))

    def _visit(self, partition: int) -> Steps[int]:
        """Execute the due steps of a partition, old copies first; return how many there were."""
        reverse = self._direction is Direction.REVERSE
        moved = 0
        for state, step in (
            (State.LEAVING, self._moves.delete),
            (State.PASSED, self._moves.follow),
            (State.WANTED, self._moves.bring),
            (State.COPIED, self._moves.refresh),
        ):
            with self._outside.transaction() as cursor:
                found = states.moves(cursor, partition, state, limit=self._at_once, descending=reverse)
            if state is State.WANTED:
                at_home = self._moves.settle_at_home(found)
                moved += len(at_home)
                found = [move for move in found if move.name not in at_home]
            done = yield from self._each(found, step)
            if state is not State.COPIED:
                moved += done
        return moved + self._advance(partition)

    def _each(self, found: list[Move], step: Step) -> Steps[int]:
        """Execute a step of each move; return how many were executed."""
        until = time.monotonic() + _CHUNK_SECONDS
        done = 0
        for move in found:
            if move.state is State.WANTED and not (yield from self._may_begin(until)):
                break
            try:
                with self._outside.starts.one() if move.state is State.WANTED else nullcontext():
                    taken = yield from step(move)
                done += taken
                if taken:
                    self._failed_in_a_row = 0
            except (GitFailed, NotAPlace, OSError) as error:
                self._raise_if_not_its_own(error)
                done += yield from self._failed(move, error)
            if time.monotonic() > until:
                break
            yield Pace.BUSY
        return done

    def _raise_if_not_its_own(self, error: Exception) -> None:
        """Raise if the error is the machine's, which would make every move fail."""
        if isinstance(error, OSError) and error.errno in (*_DISK, *_MACHINE):
            kind = NoRoom if error.errno in _DISK else MachineFailed
            raise kind(f"{error.filename or 'a root'}: {error.strerror}") from error
        for root in self._roots.values():
            if not root.is_the_same:
                raise MachineFailed(
                    f"{root.path} is not the directory that it was at the start: is it mounted?"
                ) from error

    def _may_begin(self, until: float) -> Steps[bool]:
        """Wait until the configured pace allows another move; return False if that is after `until`."""
        while not self._outside.starts.may_begin or time.monotonic() < self._begin_from:
            if time.monotonic() > min(until, self._patient_until):
                return False
            yield Pace.WAITING
        return True

    def _advance(self, partition: int) -> int:
        """Move the cursor past the copies; return how many steps became due."""
        if time.monotonic() < self._look_from:
            return 0
        with self._outside.transaction() as cursor:
            began = time.monotonic()
            unnoted = states.unnoted(cursor)
            self._look_from = time.monotonic() + _LOOK_SHARE * (time.monotonic() - began)
            moved = unnoted is not None and cursors.move(cursor, partition, self._direction, unnoted.get(partition, ()))
        # The grace period starts only now, when the commit has made the cursor visible to every reader.
        with self._outside.transaction() as cursor:
            passed = cursors.mark_passed(cursor, partition, self._direction, known=self._known, grace=self._grace)
        return moved + passed

    def _failed(self, move: Move, error: Exception) -> Steps[bool]:
        """Record a failed try; after the last one give the move up. Return whether it was given up."""
        reason = _said(error)
        with self._outside.transaction() as cursor:
            tries = states.fail(cursor, move, reason, pause=self._retry_seconds)
        gives_up = tries >= self._tries
        self._log.warning("move failed", partition=move.partition, reason=reason, gives_up=gives_up)
        if not gives_up:
            return False
        try:
            yield from self._moves.give_up(move, reason)
        except (GitFailed, NotAPlace, OSError) as another:
            self._raise_if_not_its_own(another)
            self._log.warning("giving up a move failed", partition=move.partition, reason=_said(another))
            return False
        if not isinstance(error, NotAPlace):  # which is specific to the repository
            self._slow_down(reason)
        return True

    def _slow_down(self, reason: str) -> None:
        """Begin fewer moves while all of them fail: a problem of the roots may be temporary."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _IN_A_ROW:
            seconds = min(_SLOWEST_SECONDS, _SLOW_SECONDS * 2.0 ** min(self._failed_in_a_row - _IN_A_ROW, 20))
            self._begin_from = time.monotonic() + seconds
            self._log.warning(
                "moves throttled after consecutive failures",
                failed_in_a_row=self._failed_in_a_row,
                next_in_seconds=seconds,
                reason=reason,
            )

    def _tell(self, moved: int) -> None:
        if moved and time.monotonic() >= self._tell_from:
            self._tell_from = time.monotonic() + _LOG_SECONDS
            counts = states.counts(self._outside.session)
            self._log.info("moves", direction=str(self._direction), **counts)


def _said(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return error.problem
    if not isinstance(error, OSError):
        return type(error).__name__
    where = f"{Path(os.fsdecode(error.filename)).name}: " if error.filename else ""
    return f"{where}{error.strerror or type(error).__name__}"
