"""Moving gitlab schemas to another database: from a primary to a physical copy of it, which is promoted on the way.

What was done is read from the databases themselves (rows of headrace.schema_ownership and headrace.database, the
standby's recovery, the slot), so a switchover that died anywhere is gone on with by starting it again. At no moment
may two databases write a gitlab schema: it is closed on the old one by giving it to the new one's name, and no
database has that name until the last step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from infra import log, postgres
from infra.control import OWNERSHIP, owners
from infra.locks import exclude, ownership_key
from infra.settings import Settings
from producers import slots, startup
from producers.move import Move, NotMovable, View, require_chance, require_ends, require_settings, side
from producers.publication import published_tables
from schemas.errors import HeadraceError, Refused
from schemas.gitlab_schemas import GITLAB_SHARED
from schemas.positions import format_lsn

_LOCK: Final = 0x7377697463686F76
"""The advisory lock of a switchover, on the old owner: "switchov" in ASCII."""
_LOCK_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_TRY_MS: Final = 2_000
"""How long closing waits for transactions under way before it lets others in again for a moment."""

_REPLAYED: Final = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
_CLOSE: Final = """
UPDATE headrace.schema_ownership SET owner = %(to)s, epoch = epoch + 1, changed_at = now()
 WHERE gitlab_schema = ANY(%(gitlab_schemas)s) AND owner = %(from)s
"""
_MAY_GIVE: Final = "SELECT has_table_privilege('headrace.schema_ownership', 'UPDATE')"
_MAY_TAKE: Final = """
SELECT has_table_privilege('headrace.schema_ownership', 'UPDATE')
       AND has_table_privilege('headrace.database', 'UPDATE') AND (rolsuper OR rolreplication)
       AND (%s OR has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE'))
  FROM pg_roles WHERE rolname = current_user
"""
_NAME: Final = """
UPDATE headrace.database SET name = %(to)s, opened_lsn = pg_current_wal_insert_lsn() WHERE name = %(from)s
"""
_LOCK_OWNERS: Final = "LOCK TABLE headrace.schema_ownership IN EXCLUSIVE MODE"
"""For an application's own guard (docs/switchover.md), which has a row FOR SHARE: it queues fairly behind those."""


class Busy(HeadraceError):
    """Run it again, which goes on from there; or take it back with --abort while the copy is not promoted."""


class PastNoReturn(Refused):
    """Complete it by running the switchover again: the copy was promoted, and has the data from there on."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it brings about, how to see that it holds, and how to do it; doing it twice is as once."""

    name: str
    what: str
    holds: Callable[[View], bool]
    do: Callable[[Switchover], None]


class Switchover:
    """A move under way; made by `opened`. Only `run` and `abort` change anything."""

    def __init__(
        self,
        settings: Settings,
        move: Move,
        old: psycopg.Connection[Any],
        new: psycopg.Connection[Any],
        *,
        promote: bool,
        seconds: float,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self.move = move
        self._connections = {move.source: old, move.destination: new}
        self._promotes = promote
        self._seconds = seconds
        self._stop = stop
        self._log = log.get(gitlab_schemas=list(move.gitlab_schemas))

    @property
    def source_slot(self) -> str:
        """The slot of the old owner's producer, perhaps synchronized to the copy."""
        return startup.slot_name(self._settings, self.move.source, self._settings.database(self.move.source))

    @property
    def slot(self) -> str:
        """The slot of the new owner's producer."""
        return startup.slot_name(self._settings, self.move.destination, self._settings.database(self.move.destination))

    def look(self) -> View:
        """Return how both sides stand. Raises NotMovable when they cannot be the two ends of this move."""
        captures = bool(self._settings.database(self.move.destination).tables)
        with self._new() as connection:
            new = side(connection)
            has_slot = not captures or (not new.standby and slots.read(connection, self.slot) is not None)
        with self._old() as connection:
            view = View(self.move, side(connection), new, has_slot)
        require_ends(view)
        return view

    def run(self, after: Callable[[str], None] | None = None) -> View:
        """Do every step that does not hold yet; `after`, if any, is called with the name of each that holds then.

        Raises NotMovable where one cannot be done, Busy where one took too long. What was done stays done.
        """
        with self._alone():
            for step in STEPS:
                view = self.look()
                require_chance(view)
                if not step.holds(view):
                    step.do(self)
                    self._log.info("done", step=step.name)
                if after is not None:
                    after(step.name)
            return self.look()

    def abort(self) -> View:
        """Give the gitlab schemas back to the old owner and wait until the copy has that; again, it does nothing.

        Raises PastNoReturn, with nothing changed, once the copy was promoted.
        """
        with self._alone():
            if self.look().promoted:
                raise PastNoReturn(f"{self.move.destination} is no standby any more")
            # Should it be promoted at this moment: it lacks this change of owner, and so will never be opened.
            self._give(self.move.destination, self.move.source)

            def back() -> bool:
                view = self.look()
                return not view.new.standby or view.new.owners == view.old.owners

            self._wait(back, f"{self.move.destination} to replay that {self.move.source} has them back")
            return self.look()

    @contextmanager
    def _on(self, name: str) -> Iterator[psycopg.Connection[Any]]:
        with postgres.translated(self._settings.database(name).dsn.get_secret_value()):
            yield self._connections[name]

    def _old(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        return self._on(self.move.source)

    def _new(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        return self._on(self.move.destination)

    def _close(self) -> None:
        self._require_rights()
        self._require_publication()
        # A copy that does not follow is found out while nothing is closed yet.
        with self._old() as connection:
            lsn = format_lsn(slots.emit_heartbeat(connection))

        def follows() -> bool:
            with self._new() as connection:
                return connection.execute(_REPLAYED, (lsn,)).fetchone() == (True,)

        what = f"{self.move.destination} to replay the log up to {lsn} (does it follow {self.move.source}?)"
        self._wait(follows, what)
        self._give(self.move.source, self.move.destination)

    def _give(self, giver: str, receiver: str) -> None:
        """Change the owner on the old side, once every transaction that holds it has ended."""
        deadline = time.monotonic() + self._seconds
        names = {"gitlab_schemas": list(self.move.gitlab_schemas), "from": giver, "to": receiver}
        while True:
            try:
                with self._old() as connection, connection.transaction():
                    connection.execute(f"SET LOCAL lock_timeout = {_TRY_MS}")
                    connection.execute("SET LOCAL synchronous_commit = local")
                    # Our own transactions share these; whoever gets one next reads the owner afterwards.
                    exclude(connection, map(ownership_key, self.move.gitlab_schemas))
                    connection.execute(_LOCK_OWNERS)
                    connection.execute(_CLOSE, names)
                return
            except HeadraceError as error:
                if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                    raise
                if self._stop.wait(_POLL_SECONDS) or time.monotonic() > deadline:
                    raise Busy(f"transactions on {self.move.source} have held its ownership for too long") from error

    def _require_rights(self) -> None:
        """Raise NotMovable now for a right that a later step would miss."""
        with self._old() as connection:
            old = connection.execute(_MAY_GIVE).fetchone()
        with self._new() as connection:
            new = connection.execute(_MAY_TAKE, (not self._promotes,)).fetchone()
        if not (old == (True,) and new == (True,)):
            raise NotMovable(
                "the role of the dsn may not move a gitlab schema",
                remedy="run this command as an administrator: set HEADRACE_DATABASES__<NAME>__DSN for both",
            )

    def _require_publication(self) -> None:
        """Raise NotMovable when the old producer would not see the change of owner in its stream."""
        name = self._settings.database(self.move.source).publication
        with self._old() as connection:
            published = published_tables(connection, name)
        if published is not None and ".".join(OWNERSHIP) not in published:
            raise NotMovable(
                f"publication {name} of {self.move.source} does not have {'.'.join(OWNERSHIP)}",
                remedy=f"start `headrace produce {self.move.source}` once, or run what `headrace init --sql` prints",
            )

    def _replay(self) -> None:
        self._wait(lambda: self.look().copied, f"{self.move.destination} to replay that it was given them")

    def _promote(self) -> None:
        if not self._promotes:
            raise NotMovable(
                f"{self.move.destination} is still a standby",
                remedy="promote it with your own tooling, then run the same command again",
            )
        with self._new() as connection:
            row = connection.execute("SELECT pg_promote(true, %s)", (max(1, int(self._seconds)),)).fetchone()
        if row != (True,):
            raise Busy(f"{self.move.destination} was not promoted within {self._seconds:.0f} s")

    def _make_slot(self) -> None:
        """Make the new producer's slot while nobody can write what it is for, so that it misses nothing.

        Where the old producer's slot was synchronized, it is a copy of that, which begins before the change of owner.
        """
        with self._new() as connection:
            synced = slots.read(connection, self.source_slot)
            usable = synced is not None and synced.synced and not synced.lost and synced.plugin == slots.PLUGIN
            if usable and self.source_slot != self.slot:
                slots.take_over(connection, self.source_slot, self.slot)
            else:
                slots.create(connection, self.slot, failover=True)
        self._log.info("slot made", slot=self.slot, synchronized=usable)

    def _open(self) -> None:
        names = {"from": self.move.source, "to": self.move.destination}
        shared = GITLAB_SHARED in self._settings.database(self.move.destination).gitlab_schemas
        with self._new() as connection:
            left = slots.read(connection, self.source_slot) if self.source_slot != self.slot else None
            if left is not None and left.synced:
                slots.drop(connection, self.source_slot)  # nobody will read it here, and it would keep the log
            with connection.transaction():
                exclude(connection, map(ownership_key, owners(connection)))
                connection.execute(_LOCK_OWNERS)
                connection.execute(_NAME, names)
                if shared:  # every database has its own
                    connection.execute(_CLOSE, {**names, "gitlab_schemas": [GITLAB_SHARED]})

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._seconds
        while not holds():
            if self._stop.wait(_POLL_SECONDS) or time.monotonic() > deadline:
                raise Busy(f"waited {self._seconds:.0f} s in vain for {what}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other switchovers out; one that was killed lets go as soon as its server notices."""
        deadline = time.monotonic() + _LOCK_SECONDS
        with self._old() as connection:
            while connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() != (True,):
                if self._stop.wait(_POLL_SECONDS) or time.monotonic() > deadline:
                    raise NotMovable("another switchover runs", remedy="wait for it, or stop it and run this one again")
        yield  # the lock ends with the connection


STEPS: Final = (
    Step("close", "closed on the old owner", lambda view: view.closed, Switchover._close),
    Step("replay", "replayed by the copy", lambda view: view.copied, Switchover._replay),
    Step("promote", "the copy is promoted", lambda view: view.promoted, Switchover._promote),
    Step("slot", "a slot for the new owner's producer", lambda view: view.ready, Switchover._make_slot),
    Step("open", "named, and open on the new owner", lambda view: view.opened, Switchover._open),
)
"""In this order. Up to `replay` it can be taken back; `promote` is the point of no return."""


@contextmanager
def opened(
    settings: Settings,
    move: Move,
    *,
    promote: bool = True,
    seconds: float = 60.0,
    stop: threading.Event | None = None,
) -> Iterator[Switchover]:
    """Connect to both sides. Raises UsageError for a move that the settings don't know."""
    require_settings(settings, move)
    with ExitStack() as connections:
        sides = []
        for name in (move.source, move.destination):
            dsn = settings.database(name).dsn.get_secret_value()
            sides.append(connections.enter_context(postgres.connect(dsn, name=f"switchover {name}")))
        yield Switchover(
            settings, move, sides[0], sides[1], promote=promote, seconds=seconds, stop=stop or threading.Event()
        )
