"""Records of changes: encodes consecutive ones of a table together, as far as none of them takes a decision."""

from __future__ import annotations

from collections.abc import Callable

from producers.publish.partition_routes import Route
from producers.stream import messages as pg
from schemas.events import Op


class RecordTooLarge(Exception):
    """A change whose record exceeds its topic's limit."""

    def __init__(self, route: Route, size: int) -> None:
        super().__init__(size)
        self.route = route
        self.size = size


def add_records(
    changes: pg.Changes, start: int, route: Route, prefix: Callable[[Op, Route], bytes], ordinal: int, ts_ms: int
) -> int:
    """Add the records of the changes from `start` on to their table's feed; return of how many.

    They end before a change that the compiled codec leaves over, such as one whose row omits a value that has to be
    read: see `Plan.changes`. `ordinal` is the first one's, and `ts_ms` the time of capture in milliseconds since 1970.
    """
    plan, feed = route.encoder.plan, route.feed
    if plan is None or feed.judging or route.row is not None:
        return 0
    prefixes = (
        prefix(Op.CREATE, route),
        prefix(Op.READ if route.upserts else Op.UPDATE, route),
        None if route.upserts else prefix(Op.UPDATE, route),
        prefix(Op.DELETE, route),
    )
    return plan.changes(
        changes.payloads,
        start,
        changes.place + 4,
        changes.decoder.identity_mask,
        prefixes,
        ordinal,
        ts_ms,
        feed.complete_rows,
        feed.largest,
        feed.waiting,
    )
