"""The moves themselves: what one member does with a partition, a name at a time, each step safe to be the last.

A partition is worked on by one member at a time (locks.py). Where a repository is, the disks say; states.py has what
is on record, and cursors.py where readers are sent.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from consumers import placement
from consumers.moving import copying, cursors, states
from consumers.moving.carrying import carry, finish
from consumers.moving.cursors import Direction
from consumers.moving.git import GitFailed, NoRoom, Steps, remove
from consumers.moving.locks import clone_slot, partition_lock
from consumers.moving.places import NotAPlace, Root, in_use, is_repository, roots_of
from consumers.moving.runs import begin
from consumers.moving.states import Move, State
from consumers.outside import Outside, Pace
from consumers.placement import Algorithm, Placement
from infra import log
from schemas.errors import HeadraceError, PreflightFailed

_CHUNK_SECONDS: Final = 5.0
"""How long to copy before readers are sent to what is copied."""
_REST_SECONDS: Final = (0.1, 1.0)
"""How long to rest when nothing can be done: at first, and at most, doubling."""
_BUSY_SECONDS: Final = 1.0
"""When to look again at an old copy that something is being written to."""
_LOOK_SHARE: Final = 20.0
"""Looking for what is not on record may take one part in so many of the time."""
_IN_A_ROW: Final = 10
_LOG_SECONDS: Final = 10.0
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_MACHINE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ENOTCONN)
"""What is no repository's fault, and would have all of them given up."""

Step = Callable[[Move], Steps[bool]]
"""What is done about a move; returns False when it has to wait."""


class MachineFailed(HeadraceError):
    """Put the machine right, then start again: nothing is lost."""


class TooManyFailed(HeadraceError):
    """Look at the nodes' roots; then `headrace parked retry rehash_moves` and start again."""


class Mover:
    """Moves repositories for one member, as long as its generator is driven. Raises SettingsError for wrong roots."""

    def __init__(
        self, outside: Outside, direction: Direction, *, at_once: int, tries: int, retry_seconds: float, seconds: float
    ) -> None:
        gitserver = outside.settings.gitserver
        self._outside = outside
        self._direction = direction
        self._at_once = at_once
        self._tries = tries
        self._retry_seconds = retry_seconds
        self._seconds = seconds
        self._known = 1.5 * gitserver.refresh_seconds
        self._grace = gitserver.grace_seconds
        self._clones = gitserver.max_concurrent_clones
        self._nodes = gitserver.nodes
        self._roots = roots_of(gitserver)
        self._placement = Placement(gitserver.nodes, gitserver.pins)
        self._look_from = self._tell_from = self._patient_until = 0.0
        self._failed_in_a_row = 0
        self._log = log.get(migration="rehash_moves")

    def work(self) -> Iterator[Pace]:
        """See Migration.work."""
        if shutil.which("git") is None:
            raise PreflightFailed("there is no git on this machine", remedy="install git 2.36 or newer")
        with self._outside.transaction() as cursor:
            begin(cursor, self._outside.run, self._direction, self._nodes)
        yield from self._sweep()
        rest = _REST_SECONDS[0]
        while True:
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
            (State.LEAVING, self._delete),
            (State.PASSED, self._follow),
            (State.WANTED, self._bring),
            (State.COPIED, self._refresh),
        ):
            with self._outside.transaction() as cursor:
                found = states.moves(cursor, partition, state, limit=self._at_once, descending=reverse)
            if state is State.WANTED:
                moved += self._settle_those_at_home(found)
                found = [move for move in found if len(set(self._homes(move))) > 1]
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
                    done += yield from step(move)
                self._failed_in_a_row = 0
            except (GitFailed, NotAPlace, OSError) as error:
                if isinstance(error, OSError) and error.errno in (*_DISK, *_MACHINE):
                    kind = NoRoom if error.errno in _DISK else MachineFailed
                    raise kind(f"{error.filename or 'a root'}: {error.strerror}") from error
                done += self._failed(move, error)
            if time.monotonic() > until:
                break
            yield Pace.BUSY
        return done

    def _may_begin(self, until: float) -> Steps[bool]:
        """Wait until the pace that is set allows another move; False when that is not before `until`."""
        while not self._outside.starts.may_begin:
            if time.monotonic() > min(until, self._patient_until):
                return False
            yield Pace.WAITING
        return True

    def _bring(self, move: Move) -> Steps[bool]:
        """Get a copy to the new home: wanted → copied."""
        name = move.name
        if self._is_gone(move):
            return True
        source, target = self._ends(move)
        kept = yield from self._tidy(move)
        old, new = source.place(name), target.place(name)
        if is_repository(new):
            if is_repository(old):
                kept += yield from carry(old, new, seconds=self._seconds)
        elif is_repository(old):
            with clone_slot(self._outside.session, self._clones) as free:
                if not free:
                    return False
                yield from copying.copy(old, target, name, seconds=self._seconds)
            if self._is_gone(move, undo=lambda: target.take_away(new, target.gone(name))):
                return True
        else:
            raise GitFailed("there is no such repository at either of its homes")
        self._record(move, State.COPIED, kept=kept)
        return True

    def _is_gone(self, move: Move, undo: Callable[[], None] = lambda: None) -> bool:
        """Strike a name that the application has no repository of any more; return whether it was so."""
        with self._outside.transaction() as cursor:
            if states.is_cloned(cursor, move.name):
                return False
            undo()
            states.forget(cursor, move.name)
            return True

    def _refresh(self, move: Move) -> Steps[bool]:
        """Carry over what the old home got since: right before readers are sent to the new one, and when all know."""
        source, target = self._ends(move)
        old, new = source.place(move.name), target.place(move.name)
        if not is_repository(new):
            self._record(move, State.WANTED)
        elif is_repository(old) and (kept := (yield from carry(old, new, seconds=self._seconds))):
            self._record(move, move.state, kept=kept)
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

    def _follow(self, move: Move) -> Steps[bool]:
        """Carry over what came to the old home until every reader knew better; and when it may go, let it leave."""
        if move.may_leave:
            return (yield from self._leave(move))
        yield from self._refresh(move)
        with self._outside.transaction() as cursor:
            states.wait_to_leave(cursor, move.name)
        return True

    def _leave(self, move: Move) -> Steps[bool]:
        """Take the old copy out of reach, once no reader is sent there any more: passed → leaving."""
        name = move.name
        source, target = self._ends(move)
        yield from self._tidy(move)
        old, new = source.place(name), target.place(name)
        if not is_repository(old):
            self._settle(move)
        elif not is_repository(new):
            self._record(move, State.WANTED)
        elif in_use(old):
            self._record(move, State.PASSED, after=_BUSY_SECONDS)
            return False
        else:
            kept = yield from carry(old, new, seconds=self._seconds)
            try:
                with self._outside.transaction() as cursor:
                    # Within the transaction, so that it is done by who may write, at an instant when it may.
                    if states.advance(cursor, [name], State.LEAVING, expected=[State.PASSED], failure=_said(kept)):
                        source.take_away(old, source.leaving(name))
            except BaseException:
                # A member that was away for long may have done it at an instant when it might not any more.
                source.put_back(name)
                raise
        return True

    def _delete(self, move: Move) -> Steps[bool]:
        """Delete the old copy, after it gave all that a late push brought it: leaving → settled."""
        source, target = self._ends(move)
        leaving, new = source.leaving(move.name), target.place(move.name)
        if leaving.exists() and in_use(leaving):
            self._record(move, State.LEAVING, after=_BUSY_SECONDS)
            return False
        kept = yield from self._tidy(move)
        if is_repository(new):
            self._settle(move, kept=kept)
        else:
            self._record(move, State.WANTED)
        return True

    def _tidy(self, move: Move) -> Steps[list[str]]:
        """Do away with what lies about of a move that was broken off, at both homes; nothing that is worth anything."""
        name = move.name
        kept: list[str] = []
        source, target = self._ends(move)
        for root, other in ((source, target), (target, source)):
            leaving = root.leaving(name)
            if leaving.exists():
                homes = [place for place in (other.place(name), root.place(name)) if is_repository(place)]
                if homes:
                    kept += yield from carry(leaving, homes[0], seconds=self._seconds)
                    with self._outside.transaction():  # so that nobody does it who may not write any more
                        _put_by(leaving, root.gone(name))
                else:
                    root.install(leaving, name)
            for worthless in root.worthless(name):
                yield from remove(worthless)
        return kept

    def _settle(self, move: Move, *, kept: list[str] | None = None) -> None:
        source, target = self._ends(move)
        if is_repository(source.place(move.name)):
            self._record(move, State.WANTED)
            return
        finish(target.place(move.name))
        source.prune(source.place(move.name))
        self._record(move, State.SETTLED, kept=kept)

    def _settle_those_at_home(self, found: list[Move]) -> int:
        """Settle those whose two homes are the same: by the hashes, or since they are pinned."""
        by_home: dict[str, list[str]] = {}
        for move in found:
            old, new = self._homes(move)
            if old == new:
                by_home.setdefault(new, []).append(move.name)
        with self._outside.transaction() as cursor:
            return sum(
                states.advance(cursor, names, State.SETTLED, expected=[State.WANTED], homes=(home, home))
                for home, names in by_home.items()
            )

    def _record(self, move: Move, state: State, *, kept: list[str] | None = None, after: float = 0.0) -> None:
        with self._outside.transaction() as cursor:
            states.advance(
                cursor,
                [move.name],
                state,
                expected=[move.state],
                homes=self._homes(move),
                after=after,
                failure=_said(kept or []),
            )

    def _failed(self, move: Move, error: Exception) -> bool:
        reason = error.problem if isinstance(error, HeadraceError) else str(error.strerror or type(error).__name__)  # type: ignore[attr-defined]
        with self._outside.transaction() as cursor:
            last = states.fail(cursor, move, reason, most=self._tries, pause=self._retry_seconds)
        self._log.warning("a move failed", partition=placement.partition_of(move.raw), reason=reason, gave_up=last)
        self._failed_in_a_row += last
        if self._failed_in_a_row >= _IN_A_ROW:
            raise TooManyFailed(f"{_IN_A_ROW} moves in a row failed, the last: {reason}")
        return last

    def _tell(self, moved: int) -> None:
        if moved and time.monotonic() >= self._tell_from:
            self._tell_from = time.monotonic() + _LOG_SECONDS
            counts = states.counts(self._outside.session)
            self._log.info("moves", direction=str(self._direction), **counts)

    def _homes(self, move: Move) -> tuple[str, str]:
        """Return the node that a name comes from and the one it goes to."""
        old = self._placement.home(move.raw, Algorithm.MD5)
        new = self._placement.home(move.raw, Algorithm.RENDEZVOUS)
        return (old, new) if self._direction is Direction.FORWARD else (new, old)

    def _ends(self, move: Move) -> tuple[Root, Root]:
        old, new = self._homes(move)
        return self._roots[old], self._roots[new]


def _put_by(leaving: Path, gone: Path) -> None:
    """Give an old copy up: all that it had is elsewhere."""
    leaving.rename(gone)


def _said(kept: list[str]) -> str | None:
    return (
        f"both copies were written to; {len(kept)} refs have their other value under refs/headrace/kept"
        if kept
        else None
    )
