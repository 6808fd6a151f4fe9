"""Moves repositories as one member of the group: which move is next, at what pace, and what a failure means.

A partition is worked on by one member at a time (locks.py). moves.py has the steps of a single move, states.py what is
on record, and cursors.py where readers are sent.
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
"""How long to copy before readers are sent to what is copied."""
_REST_SECONDS: Final = (0.1, 1.0)
"""How long to rest when nothing can be done: at first, and at most, doubling."""
_LOOK_SHARE: Final = 20.0
"""Looking for what is not on record may take one part in so many of the time."""
_IN_A_ROW: Final = 10
_SLOW_SECONDS: Final = 1.0
_SLOWEST_SECONDS: Final = 60.0
"""How long to wait before the next move when so many in a row were given up: at first, and at most, doubling."""
_LOG_SECONDS: Final = 10.0
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_MACHINE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ENOTCONN)
"""What is no repository's fault, and would have all of them given up."""

Step = Callable[[Move], Steps[bool]]
"""What is done about a move; returns False when it has to wait."""


class MachineFailed(HeadraceError):
    """Put the machine right, then start again: nothing is lost."""


class Mover:
    """Moves repositories for one member, as long as its generator is driven. Raises what readiness.py finds missing."""

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
            # A pace that is slow is waited for in one partition, and holds up what is due in the others no longer.
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
        """See to what lies about and belongs to no move that is open: of a member that died, or was away too long."""
        for root in self._roots.values():
            lying = root.lying_about()
            with self._outside.transaction() as cursor:
                nobodys = states.not_open(cursor, {place_hash for place_hash, _ in lying})
                # What is worth something is looked at as a move of its own.
                states.want_again(cursor, [one for one, path in lying if one in nobodys and root.is_worth(path)])
            for place_hash, path in lying:
                if place_hash in nobodys and not root.is_worth(path):
                    yield from remove(path)
                    self._log.info("removed what a member had left", root=str(root.path))

    def _visit(self, partition: int) -> Steps[int]:
        """Do what is due in a partition, old copies first; return how much it was."""
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
        """Take a step of each move; return how many were taken."""
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
        """Raise what is the machine's fault, and would have every repository given up."""
        if isinstance(error, OSError) and error.errno in (*_DISK, *_MACHINE):
            kind = NoRoom if error.errno in _DISK else MachineFailed
            raise kind(f"{error.filename or 'a root'}: {error.strerror}") from error
        for root in self._roots.values():
            if not root.is_the_same:
                raise MachineFailed(f"{root.path} is not what it was at the start: is it mounted?") from error

    def _may_begin(self, until: float) -> Steps[bool]:
        """Wait until the pace that is set allows another move; False when that is not before `until`."""
        while not self._outside.starts.may_begin or time.monotonic() < self._begin_from:
            if time.monotonic() > min(until, self._patient_until):
                return False
            yield Pace.WAITING
        return True

    def _advance(self, partition: int) -> int:
        """Send readers on to what is copied; return how much became due by it."""
        if time.monotonic() < self._look_from:
            return 0
        with self._outside.transaction() as cursor:
            began = time.monotonic()
            unnoted = states.unnoted(cursor)
            self._look_from = time.monotonic() + _LOOK_SHARE * (time.monotonic() - began)
            moved = unnoted is not None and cursors.move(cursor, partition, self._direction, unnoted.get(partition, ()))
        # The clock starts only now, when the commit has shown every reader where the cursor is.
        with self._outside.transaction() as cursor:
            passed = cursors.mark_passed(cursor, partition, self._direction, known=self._known, grace=self._grace)
        return moved + passed

    def _failed(self, move: Move, error: Exception) -> Steps[bool]:
        """Note a failed try; after the last one end the move with the copy that is the truth. Return whether it was."""
        reason = _said(error)
        with self._outside.transaction() as cursor:
            tries = states.fail(cursor, move, reason, pause=self._retry_seconds)
        gives_up = tries >= self._tries
        self._log.warning("a move failed", partition=move.partition, reason=reason, gives_up=gives_up)
        if not gives_up:
            return False
        try:
            yield from self._moves.give_up(move, reason)
        except (GitFailed, NotAPlace, OSError) as another:
            self._raise_if_not_its_own(another)
            self._log.warning("a move could not be given up", partition=move.partition, reason=_said(another))
            return False
        if not isinstance(error, NotAPlace):  # which is the repository's own matter
            self._slow_down(reason)
        return True

    def _slow_down(self, reason: str) -> None:
        """Begin fewer moves while all of them fail: it may be the roots' fault, and right again soon."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _IN_A_ROW:
            seconds = min(_SLOWEST_SECONDS, _SLOW_SECONDS * 2.0 ** min(self._failed_in_a_row - _IN_A_ROW, 20))
            self._begin_from = time.monotonic() + seconds
            self._log.warning(
                "moves throttled: all of the last ones failed",
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
