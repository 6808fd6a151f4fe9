"""Moves git repositories from their md5 node to their rendezvous node.

Seed 002. In the order of their names, each repository is copied to its new home, the move is recorded, and the old copy
is removed once no reader is sent there. Events list the repositories; `consumers.gitserver` moves them, and
`consumers.routing.lookup` returns where applications find them meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import ClassVar, Final

from pydantic import Field

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.external import Outside, Pace, WorkStatus
from consumers.contract.migration import Cursor, Migration, Options
from consumers.gitserver import cursors, states
from consumers.gitserver.cursors import Direction
from consumers.gitserver.readiness import missing
from consumers.gitserver.tables import OWN_TABLES
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from schemas.events import UNCHANGED, ChangeEvent, Op

_CLONED: Final = "cloned"

_DELETED: Final = Skip("deleted")
_TRUNCATED: Final = Skip("truncated")
_NOT_CLONED: Final = Skip("not cloned")


class RehashMovesOptions(Options):
    """Options of rehash_moves."""

    # A run's direction is recorded separately, and another one is refused (gitserver/runs.py).
    not_deciding: ClassVar[tuple[str, ...]] = ("direction", "moves_at_once", "tries", "retry_seconds", "clone_seconds")
    direction: Direction = Direction.FORWARD
    """reverse: back to the md5 homes. Takes effect with a new run (`headrace replay rehash_moves`), even half-way."""
    moves_at_once: int = Field(default=200, ge=1)
    """How many repositories of a partition are read at a time."""
    tries: int = Field(default=3, ge=1)
    """How often a failing move is tried; then it is given up, and its only copy stays in place."""
    retry_seconds: float = Field(default=1.0, ge=0)
    """The pause after the first failed try; twice as long after the second."""
    clone_seconds: float = Field(default=3600.0, gt=0)
    """The time limit of copying a repository, and of each check by git that a copy is complete."""


class RehashMoves(Migration):
    """Move repositories to their rendezvous homes, or back."""

    name = "rehash_moves"
    gitlab_schema = "gitserver"
    tables = ("public.repo", "public.gitserver_repos")
    columns = ("id", "repo_id", "clone_status")
    writes = ("public.gitserver_repos",)
    optional_columns = columns  # each of the two tables has its own
    own_tables = OWN_TABLES
    options_type = RehashMovesOptions
    options: RehashMovesOptions

    def decide(self, event: ChangeEvent) -> Decision:
        """Return Change for a repository that may be cloned or renamed; see Migration.decide."""
        row = event.after
        if row is None:
            return _TRUNCATED if event.op is Op.TRUNCATE else _DELETED
        if "repo_id" not in row:
            return Change(row["id"])
        status = row["clone_status"]
        if status is not UNCHANGED and status != _CLONED:
            return _NOT_CLONED
        return Change(row["repo_id"])

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Record the repositories that are cloned now, to be moved; see Migration.apply."""
        keys = [change.key for change in changes]
        return states.note(cursor, states.cloned(cursor, keys))  # type: ignore[arg-type]

    def remaining(self, cursor: Cursor) -> int:
        """Count the cloned repositories that are not moved."""
        return states.remaining(cursor, self.options.direction)

    def work(self, outside: Outside) -> Iterator[Pace]:
        """Move the recorded repositories; see Migration.work."""
        # Every command that lists migrations imports this module, and few consumers move repositories.
        from consumers.gitserver.worker import Mover  # noqa: PLC0415

        options = self.options
        mover = Mover(
            outside,
            options.direction,
            at_once=options.moves_at_once,
            tries=options.tries,
            retry_seconds=options.retry_seconds,
            seconds=options.clone_seconds,
        )
        return mover.work()

    def unready(self, settings: Settings) -> Iterator[HeadraceError]:
        """Yield problems with git, the roots or the janitor's setting; see Migration.unready."""
        return missing(settings.gitserver)

    def work_status(self, cursor: Cursor) -> WorkStatus:
        """Return how many moves were given up, and which names the cursors have passed; see Migration.work_status."""
        given_up, reported = states.count_told(cursor)
        return WorkStatus(given_up, reported, cursors.reached(cursor))

    def given_up(self, cursor: Cursor) -> Sequence[tuple[str, str, datetime]]:
        """Return the repositories that could not be moved, and those with something to report; see states.given_up."""
        return states.given_up(cursor)

    def take_up(self, cursor: Cursor, names: Sequence[str]) -> int:
        """Try these repositories again."""
        return states.take_up(cursor, names)
