"""The steps of a repository's move by state; the process may die after any of them.

The disks determine where a repository is; states.py has the recorded states, and which of two copies is authoritative.
A copy is removed only after the other was proven, in this move, to be complete and to have all of its content.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from consumers.contract.external import Outside
from consumers.gitserver import cursors, states
from consumers.gitserver.cursors import Cursor, Direction
from consumers.gitserver.locks import clone_slot
from consumers.gitserver.states import Move, State
from consumers.repositories import clone
from consumers.repositories.base import finish, shared_base
from consumers.repositories.carry_over import Tell, carry, keep_up
from consumers.repositories.git import GitFailed, Steps, remove
from consumers.repositories.lenders import Lenders
from consumers.repositories.proof import is_untouched, prove
from consumers.repositories.storage import Copy, Misplaced, NotAPlace, Root, in_use, is_repository
from consumers.repositories.trees import walk
from consumers.routing.placement import Algorithm, Placement
from schemas.errors import HeadraceError

_BUSY_SECONDS: Final = 1.0
"""The pause before an old copy that is being written to is checked again."""
_BORROWED_SECONDS: Final = 60.0
"""The pause if other repositories use its objects."""


class Moves:
    """The steps of one move at a time; each returns False if it has to wait.

    Raises GitFailed, NotAPlace or OSError if a step fails.
    """

    def __init__(self, outside: Outside, direction: Direction, roots: Mapping[str, Root], *, seconds: float) -> None:
        gitserver = outside.settings.gitserver
        self._outside = outside
        self._direction = direction
        self._roots = roots
        self._seconds = seconds
        self._clones = gitserver.max_concurrent_clones
        self._placement = Placement(gitserver.nodes, gitserver.pins)
        self.lenders = Lenders(list(roots.values()))

    def homes(self, move: Move) -> tuple[str, str]:
        """Return the old and the new node of a name."""
        old = self._placement.home(move.raw, Algorithm.MD5)
        new = self._placement.home(move.raw, Algorithm.RENDEZVOUS)
        return (old, new) if self._direction is Direction.FORWARD else (new, old)

    def bring(self, move: Move) -> Steps[bool]:
        """Copy the repository to its new home: wanted → copied."""
        if self._is_gone(move):
            return True
        if not (yield from self._tidy(move)):
            return False
        old, new = self._ends(move)
        if not old.is_there:
            if os.path.lexists(old.path):
                raise NotAPlace("the directory at its old home is not a repository")
            if not new.is_there:
                raise self._nowhere(move)
        elif old == new:
            self._record(move, State.SETTLED)  # it was created there meanwhile
            return True
        elif (yield from self._belongs(move, old, new)):
            yield from carry(old, new, seconds=self._seconds, tell=self._tell(move))
        else:
            self.lenders.refuse(old)
            with clone_slot(self._outside.session, self._clones) as free:
                if not free:
                    return False
                made = yield from clone.copy(old, new.root, seconds=self._seconds)
            if not self._install(move, made, new, like=old):
                yield from remove(made.path)
                return True
            if shared_base(old, new) is None:
                raise GitFailed("the roots' file system has no stable inode numbers")
        self._record(move, State.COPIED)
        return True

    def refresh(self, move: Move) -> Steps[bool]:
        """Carry over later writes to the old home: before readers are sent to the new one, and once all are."""
        old, new = self._ends(move)
        if not new.is_there:
            self._record(move, State.WANTED)
        elif not old.is_there:
            pass
        elif move.state is State.COPIED and shared_base(old, new) is None:
            self._record(move, State.WANTED)
        else:
            yield from keep_up(old, new, seconds=self._seconds, tell=self._tell(move))
            if move.tries > 0:
                self._record(move, move.state)  # the cursor may pass it again
        return True

    def follow(self, move: Move) -> Steps[bool]:
        """Carry over writes to the old home until all readers use the new one; then take the old copy away."""
        if move.may_leave:
            return (yield from self._leave(move))
        yield from self.refresh(move)
        with self._outside.transaction() as cursor:
            states.wait_to_leave(cursor, move.name)
        return True

    def _leave(self, move: Move) -> Steps[bool]:
        """Take the old copy out of reach once no reader is sent there: passed → leaving."""
        if not (yield from self._tidy(move)):
            self._record(move, State.PASSED, after=_BUSY_SECONDS)
            return False
        old, new = self._ends(move)
        if not old.is_there:
            self._settle(move)
        elif not new.is_there:
            self._record(move, State.WANTED)
        elif in_use(old.path):
            self._record(move, State.PASSED, after=_BUSY_SECONDS)
            return False
        elif (borrower := self.lenders.borrower_of(old)) is not None:
            # It is needed there until an operator repacks the borrower.
            self._tell(move)(f"its old copy was kept: {borrower} uses its objects")
            self._record(move, State.PASSED, after=_BORROWED_SECONDS)
            return False
        else:
            yield from carry(old, new, seconds=self._seconds, tell=self._tell(move))
            yield from prove(new, seconds=self._seconds)
            leaving = old.root.leaving(move.name)
            with self._guarded(lambda: old.root.put_back(move.name)) as cursor:
                if states.advance(cursor, [move.name], State.LEAVING, expected=[State.PASSED]):
                    old.root.take_away(old.path, leaving)
        return True

    def delete(self, move: Move) -> Steps[bool]:
        """Delete the old copy after late pushes to it were carried over: leaving → settled."""
        _, new = self._ends(move)
        if not (yield from self._tidy(move)):
            self._record(move, State.LEAVING, after=_BUSY_SECONDS)
            return False
        if new.is_there:
            self._settle(move)
        else:
            self._record(move, State.WANTED)
        return True

    def give_up(self, move: Move, reason: str) -> Steps[None]:
        """End a move that cannot be finished, and keep the authoritative copy; see states.py."""
        try:
            old, new = self._ends(move)
        except NotAPlace:
            self._record(move, State.FAILED, failure=reason)
            return
        after = move.state in (State.PASSED, State.LEAVING)
        if old == new:
            self._record(move, State.FAILED, failure=reason)
        elif after and not new.is_there:
            self._record(move, State.WANTED)
        elif after or (yield from self._is_authoritative(move, new)):
            why = f"its old copy, which could not be carried over ({reason}),"
            for copy in (old, old.root.left(move.name), new.root.left(move.name)):
                self._set_aside(move, copy, why)
            self._settle(move)
        else:
            if old.is_there and os.path.lexists(new.path):
                yield from self._withdraw(move, old, new)
            self._record(move, State.FAILED, failure=reason)

    def _withdraw(self, move: Move, old: Copy, new: Copy) -> Steps[None]:
        """Remove the copy at the new home: delete it if it is headrace's and unchanged, else set it aside."""
        base = shared_base(old, new)
        ours = base is not None and (yield from is_untouched(new))
        if base is None or not ours or (yield from walk(new.path, files_only=True)) != base.files:
            self._set_aside(move, new, "the directory at its new home")
            return
        gone = new.root.gone(move.name)
        with self._guarded(lambda: _back(gone, new.path)):
            new.root.take_away(new.path, gone)
        yield from remove(gone)

    def settle_at_home(self, found: list[Move]) -> set[str]:
        """Settle moves whose two homes are the same, by the hashes or by a pin; return their names."""
        by_home: dict[str, list[str]] = {}
        for move in found:
            old, new = self.homes(move)
            if old == new and self._lies_at(new, move.name) is not False:
                by_home.setdefault(new, []).append(move.name)
        with self._outside.transaction() as cursor:
            for home, names in by_home.items():
                states.advance(cursor, names, State.SETTLED, expected=[State.WANTED], homes=(home, home))
        return {name for names in by_home.values() for name in names}

    def nodes_with(self, name: str) -> list[str]:
        """Return the nodes that have a repository of this name, in its place or waiting for deletion."""
        return [node for node, root in self._roots.items() if self._lies_at(node, name) or root.left(name).is_there]

    def _lies_at(self, node: str, name: str) -> bool | None:
        """Return whether the node has the repository; None if headrace may not look, as behind a link."""
        try:
            return self._roots[node].copy(name).is_there
        except NotAPlace:
            return None

    def _nowhere(self, move: Move) -> HeadraceError:
        """Return the error for a repository that is at neither home."""
        homes = " nor ".join(dict.fromkeys(self.homes(move)))
        if nodes := self.nodes_with(move.name):
            return Misplaced(
                f"it is on {' and '.join(nodes)}, where no reader looks, and not on {homes}: move its directory there,"
                " or correct the pin"
            )
        return GitFailed(f"the repository is not on {homes}")

    def _is_gone(self, move: Move) -> bool:
        """Forget a name if the application no longer has a repository of it; return whether it was forgotten."""
        with self._outside.transaction() as cursor:
            if states.is_cloned(cursor, move.name):
                return False
            states.forget(cursor, move.name)
            return True

    def _belongs(self, move: Move, old: Copy, new: Copy) -> Steps[bool]:
        """Return whether the new home has a copy of this repository: headrace's, or the one that readers use."""
        if not new.is_there:
            return False
        return shared_base(old, new) is not None or (yield from self._is_authoritative(move, new))

    def _is_authoritative(self, move: Move, new: Copy) -> Steps[bool]:
        """Return whether readers are sent to the copy at the new home, and it is complete."""
        with self._outside.transaction() as cursor:
            passed = cursors.has_passed(cursor, move.partition, move.name, self._direction)
        if not passed or not new.is_there:
            return False
        try:
            yield from prove(new, seconds=self._seconds)
        except GitFailed:
            return False
        return True

    def _install(self, move: Move, made: Copy, new: Copy, like: Copy) -> bool:
        """Put a copy into its place; return False if the application removed the repository meanwhile.

        The copy stays there if the transaction fails: another consumer may have continued the move, and sent readers
        there. A consumer that lost its session before the rename finds nothing to rename: see _tidy.
        """
        try:
            if self._is_gone(move):
                return False
            self._set_aside(move, new, "the directory at its new home")
            with self._outside.transaction():
                if not new.root.install(made.path, made.name, like.path):
                    raise GitFailed("another process created a repository at its new home meanwhile")
            return True
        except BaseException:
            shutil.rmtree(made.path, ignore_errors=True)
            raise

    def _tidy(self, move: Move) -> Steps[bool]:
        """Remove the leftovers of an interrupted move at both homes, except those that may be the only copy.

        Returns False while a push is in progress in an old copy that is out of reach: it has to be carried over.
        """
        old, new = self._ends(move)
        for here, there in ((old, new), (new, old)):
            leaving = here.root.left(move.name)
            if leaving.path.exists():
                home = next((each for each in (there, here) if each.is_there), None)
                if home is None:
                    here.root.install(leaving.path, move.name)
                elif in_use(leaving.path):
                    return False
                else:
                    yield from carry(leaving, home, seconds=self._seconds, tell=self._tell(move))
                    yield from prove(home, seconds=self._seconds)
                    with self._outside.transaction():  # fails if this consumer may no longer write
                        _put_by(leaving.path, here.root.gone(move.name))
            for worthless in here.root.worthless(move.name):
                # Renamed first: a consumer that is frozen before it installs the copy must not install part of it.
                gone = here.root.gone(move.name)
                worthless.rename(gone)
                yield from remove(gone)
        return True

    def _set_aside(self, move: Move, copy: Copy, what: str) -> None:
        """Set aside a directory that headrace must not delete, and report it; does nothing if it does not exist."""
        if not os.path.lexists(copy.path):
            return
        if copy.path.is_dir() and not any(copy.path.iterdir()):
            copy.path.rmdir()
            return
        aside = copy.root.set_aside(move.name)
        # Recorded first: if this is killed in between, the next try sets it aside at the same path.
        self._tell(move)(f"{what} was set aside as {aside}")
        with self._guarded(lambda: _back(aside, copy.path)):
            copy.root.take_away(copy.path, aside)

    def _settle(self, move: Move) -> None:
        old, new = self._ends(move)
        if is_repository(old.path):
            self._record(move, State.WANTED)
            return
        finish(new.path)
        old.root.prune(old.path)
        self._record(move, State.SETTLED)

    def _record(self, move: Move, state: State, *, after: float = 0.0, failure: str | None = None) -> None:
        with self._outside.transaction() as cursor:
            states.advance(
                cursor, [move.name], state, expected=[move.state], homes=self.homes(move), after=after, failure=failure
            )

    def _tell(self, move: Move) -> Tell:
        def tell(text: str) -> None:
            with self._outside.transaction() as cursor:
                states.remark(cursor, move.name, text)

        return tell

    @contextmanager
    def _guarded(self, undo: Callable[[], None]) -> Iterator[Cursor]:
        """Rename within a transaction that proves that this consumer may write.

        If the transaction fails, the consumer may have renamed after it lost that right: the rename is undone.
        """
        try:
            with self._outside.transaction() as cursor:
                yield cursor
        except BaseException:
            undo()
            raise

    def _ends(self, move: Move) -> tuple[Copy, Copy]:
        old, new = self.homes(move)
        return self._roots[old].copy(move.name), self._roots[new].copy(move.name)


def _put_by(leaving: Path, gone: Path) -> None:
    """Rename an old copy to be deleted; the tests kill the process here."""
    leaving.rename(gone)


def _back(now: Path, before: Path) -> None:
    """Undo a rename, if it was done and the old path is free."""
    if os.path.lexists(now) and not os.path.lexists(before):
        before.parent.mkdir(parents=True, exist_ok=True)
        now.rename(before)
