"""A deliberately non-idempotent migration: it records every event that it applies, whatever the row's state.

So an event that is applied twice, too early or out of order shows, where a guard would hide it. A trigger on
public.copies logs each write; see tests.chaos.path.tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Cursor, Migration
from schemas.events import ChangeEvent

_WRITE = (
    "INSERT INTO public.copies AS c (id, op, lsn, ordinal, xid) VALUES (%s, %s, %s, %s, %s)"
    " ON CONFLICT (id) DO UPDATE SET (op, lsn, ordinal, xid) ="
    " (excluded.op, excluded.lsn, excluded.ordinal, excluded.xid)"
)


class ChaosCopies(Migration):
    """Record which event of each row was applied last."""

    name = "chaos_copies"
    gitlab_schema = "gitlab_main"
    tables = ("public.container_repositories",)
    writes = ("public.copies",)
    columns = ("id",)
    continuous = True

    def decide(self, event: ChangeEvent) -> Decision:
        """Apply every event of a row; see Migration.decide."""
        row = event.after if event.after is not None else event.before
        if row is None:
            return Skip("truncated")
        source = event.source
        position = source.position
        return Change(
            row["id"], {"op": str(event.op), "lsn": position.commit_lsn, "ordinal": position.ordinal, "xid": source.xid}
        )

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Record each event, in order; see Migration.apply."""
        cursor.executemany(
            _WRITE,
            [
                (change.key, change.values["op"], change.values["lsn"], change.values["ordinal"], change.values["xid"])
                for change in changes
            ],
        )
        return len(changes)

    def remaining(self, cursor: Cursor) -> int:
        """Return zero: the table cannot show which events are left."""
        del cursor
        return 0
