"""Records of changes: encodes consecutive ones of a table together, as far as none of them takes a decision."""

from __future__ import annotations

from collections.abc import Mapping

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
    changes: pg.Changes, start: int, route: Route, prefixes: Mapping[tuple[int, Op], bytes], ordinal: int, ts_ms: int
) -> int:
    """Add the records of the changes from `start` on to their table's feed; return of how many.

    They end before a change that the compiled codec leaves over, such as one whose row omits a value that has to be
    read: see `Plan.changes`. They also end before one without a prefix (by oid and operation): a transaction needs few
    of them. `ordinal` is the first one's, and `ts_ms` the time of capture in milliseconds since 1970.
    """
    plan, feed = route.encoder.plan, route.feed
    if plan is None or feed.judging or route.row is not None:
        return 0
    oid, upserts = changes.relation.oid, route.upserts
    made = (
        prefixes.get((oid, Op.CREATE)),
        prefixes.get((oid, Op.READ if upserts else Op.UPDATE)),
        None if upserts else prefixes.get((oid, Op.UPDATE)),
        prefixes.get((oid, Op.DELETE)),
    )
    return plan.changes(
        changes.payloads,
        start,
        changes.place + 4,
        changes.decoder.identity_mask,
        made,
        ordinal,
        ts_ms,
        feed.complete_rows,
        feed.largest,
        feed.waiting,
    )
