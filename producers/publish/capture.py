"""Turns a stream's messages into records: which are published, at which position, and which are skipped.

Pure, except that the first event of a table may query the schema registry. Skips events at or below the recorded
position, which are in the topics, and those covered by a snapshot in progress (`producers.snapshot.chunk_rules`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from infra.postgres.control import OWNERSHIP, PUBLISHED, REQUESTS
from infra.schema_registry.topic_registry import IncompatibleSchema
from infra.service import log
from infra.state.positions import HandoverState
from infra.state.snapshot_requests import RequestRow
from producers.publish.change_records import RecordTooLarge, add_records
from producers.publish.own_tables import handed_over, is_table, owner_in, request_row
from producers.publish.partition_routes import Route, key_of, route_of
from producers.publish.stray_writes import Strays
from producers.publish.table_publisher import TableFeed
from producers.snapshot.chunk_rules import Unseen
from producers.source.schema_changes import TableStopped
from producers.source.server_text import ServerText
from producers.source.table_errors import not_utf8
from producers.stream import messages as pg
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Op, Relation
from schemas.gitlab_schemas import PER_DATABASE
from schemas.positions import Lsn, Position


class Capture:
    """Turns messages into records that wait in their tables' feeds.

    `position` is the last change processed, published or skipped. `confirmed` is the end of the last transaction that
    was processed completely: the slot may advance to it once that position is recorded.
    """

    def __init__(
        self,
        feeds: Iterable[TableFeed],
        position: Position,
        confirmed: Lsn,
        unseen: Unseen,
        strays: Strays | None = None,
        text: ServerText | None = None,
    ) -> None:
        """`text` converts rows and names that are not in UTF-8."""
        self._all = tuple(feeds)
        self.strays = strays or Strays("", {}, ())
        self._text = text
        self._feeds: Mapping[tuple[str, str], TableFeed] = {}
        self._by_oid = {feed.table.relation.oid: feed for feed in self._all}
        self._routes: dict[int, Route] = {}
        self._partitions: dict[int, TableFeed] = {}
        self._strangers: set[int] = set()
        self.met_stranger = False
        """Whether a change of an unknown relation was skipped, such as a new partition, which the next check finds."""
        self._publish_what_is_here()
        self.position = position
        self.confirmed = confirmed
        self.unseen = unseen
        self.commit_ms = 0
        self.published = 0
        self.moved = False
        """Whether the position moved since the caller last set this to False."""
        self._recorded = position
        self._recorded_whole = confirmed > position.commit_lsn
        self._begin: pg.Begin | None = None
        self._ordinal = 0
        self._now_ms = 0
        self._judging = True
        """Whether passed transactions have to be recorded in `unseen`."""
        self._prefixes: dict[tuple[int, Op], bytes] = {}
        self._skipping = False
        self._open_requests: list[RequestRow] = []
        """Requests of the open transaction, not taken before it ends."""
        self._requests: list[RequestRow] = []
        self.handovers: dict[str, HandoverState | None] = {}
        """Gitlab schemas whose owner changed, to be recorded with the position; None: this source owns it again."""

    def take_requests(self) -> list[RequestRow]:
        """Return each request (`snapshot_requests`) of completely received transactions once.

        Record them with the position: it is after them, even if it is inside an open transaction. That one is sent
        again from its start, with its own requests.
        """
        requests, self._requests = self._requests, []
        return requests

    def settle(self) -> list[TableFeed]:
        """Forget the snapshots of all chunks that the stream has passed; return the feeds whose state to record."""
        changed = [feed for feed in self._feeds.values() if feed.settle(self.position.commit_lsn)]
        self._judging = any(feed.counts_transactions for feed in self._feeds.values())
        return changed

    def handle(self, message: pg.Message) -> None:
        """Process one message; they come in stream order, each transaction complete."""
        match message:
            case pg.Changes():
                self._changes(message)
            case pg.Insert() | pg.Update() | pg.Delete():
                self._change(message)
            case pg.Begin():
                self._start(message)
            case pg.Commit():
                self._end(message)
            case pg.Truncate():
                self._truncate(message)
            case pg.RelationMessage() | pg.TypeMessage() | pg.Origin():
                pass
            case _:
                raise Malformed(
                    f"unexpected {type(message).__name__} in a stream without large transactions in progress"
                )

    def _start(self, begin: pg.Begin) -> None:
        self._begin = begin
        self._ordinal = -1
        self._now_ms = time.time_ns() // 1_000_000
        self._prefixes.clear()
        recorded = self._recorded
        self._skipping = begin.final_lsn < recorded.commit_lsn or (
            begin.final_lsn == recorded.commit_lsn and self._recorded_whole
        )
        if self._judging and not self._skipping:
            # At its start, not its end: a chunk may be read while the stream is in the middle of it.
            self.unseen.passed(begin.xid)

    def _end(self, commit: pg.Commit) -> None:
        begin = self._begin
        self._begin = None
        if begin is None or self._skipping:
            return
        self._requests += self._open_requests
        self._open_requests.clear()
        self.position = Position(begin.final_lsn, self._ordinal)
        self.confirmed = commit.end_lsn
        self.commit_ms = commit.commit_ms
        self.moved = True

    def _next(self, relation: Relation, op: Op, *, removes: bool = False) -> Route | None:
        """Count a change; return its route, None if it is already in the topics or its table is not captured.

        With `removes`, it may remove a key from the table.
        """
        begin = self._begin
        if begin is None:
            raise Malformed(f"a change of {relation.qualified_name} outside of a transaction")
        self._ordinal += 1
        recorded = self._recorded
        if self._skipping or (begin.final_lsn == recorded.commit_lsn and self._ordinal <= recorded.ordinal):
            return None
        self.position = Position(begin.final_lsn, self._ordinal)
        self.moved = True
        route = self._routes.get(relation.oid)
        if route is None or route.relation is not relation:
            named = relation if self._text is None else self._text.relation(relation)
            feed = self._feed_of(named)
            if feed is None:
                if (away := self._away_of(named)) is not None:
                    self.strays.note(away, op, begin.commit_ms, removes=removes)
                return None
            try:
                route = self._routes[relation.oid] = route_of(relation, named, feed, self._text)
            except (TableStopped, IncompatibleSchema) as error:
                self._stop(feed, error)
                return None
            except UnicodeEncodeError:
                self._stop(feed, TableStopped(not_utf8("a column's name")))
                return None
            self._prefixes.clear()
        return route

    def _feed_of(self, relation: Relation) -> TableFeed | None:
        """Return the feed of a relation's changes; None if they are not published."""
        # Not by name alone: a renamed table is still the captured one.
        oid = relation.oid
        feed = self._partitions.get(oid) or self._by_oid.get(oid) or self._feeds.get((relation.schema, relation.table))
        if feed is None and oid not in self._strangers and (relation.schema, relation.table) not in PUBLISHED:
            self._strangers.add(oid)
            self.met_stranger = True
        if feed is None or feed.away or feed.state.stopped:
            return None
        if feed.table.partitioned and feed.table.relation.oid == oid:
            self._stop(feed, TableStopped("it was published via its root (publish_via_partition_root) for a while"))
            return None
        if feed.table.relation.oid != oid and oid not in feed.leaves:
            self._stop(feed, TableStopped("it was dropped, and another table has its name"))
            return None
        return feed

    def _away_of(self, relation: Relation) -> str | None:
        """Return the name of the relation's captured table if another database owns it, else None."""
        feed = self._partitions.get(relation.oid) or self._by_oid.get(relation.oid)
        named = (feed for feed in self._all if feed.table.name == relation.qualified_name)
        feed = feed or next(named, None)
        return feed.table.name if feed is not None and feed.away else None

    def _stop(self, feed: TableFeed, error: TableStopped | IncompatibleSchema | Malformed) -> None:
        """Stop publishing one table whose topic would become wrong; the others continue."""
        feed.stop(error.problem)
        self._routes = {oid: route for oid, route in self._routes.items() if route.feed is not feed}
        self.moved = True

    def _changes(self, changes: pg.Changes) -> None:
        """Process consecutive changes: one at a time those that take a decision, the others together."""
        index = 0
        while index < len(changes.payloads):
            added = self._together(changes, index)
            if added == 0:
                self._change(changes.change(index))
            index += added or 1

    def _together(self, changes: pg.Changes, start: int) -> int:
        """Add the records of changes from `start` on, up to one that takes a decision; return their number."""
        begin, recorded = self._begin, self._recorded
        route = self._routes.get(changes.relation.oid)
        if begin is None or self._skipping or route is None or route.relation is not changes.relation:
            return 0
        if not self._prefixes:
            return 0  # the transaction's first change, and often its last
        if begin.final_lsn == recorded.commit_lsn and self._ordinal < recorded.ordinal:
            return 0
        added = add_records(changes, start, route, self._prefixes, self._ordinal + 1, self._now_ms)
        if added:
            self._ordinal += added
            self.position = Position(begin.final_lsn, self._ordinal)
            self.moved = True
            self.published += added
        return added

    def _change(self, message: pg.Insert | pg.Update | pg.Delete) -> None:
        try:
            match message:
                case pg.Insert():
                    self._insert(message)
                case pg.Update():
                    self._update(message)
                case pg.Delete():
                    self._delete(message)
        except RecordTooLarge as error:
            feed = error.route.feed
            row = message.before if isinstance(message, pg.Delete) else message.after
            columns = zip(message.relation.columns, row, strict=True)
            sizes = [(column.name, len(text)) for column, text in columns if isinstance(text, bytes)]
            self._stop(feed, feed.too_large(error.size, sizes))
        except Malformed as error:
            route = self._routes.get(message.relation.oid)
            if route is None or self._begin is None:
                raise
            self._stop(route.feed, error)

    def _prefix(self, op: Op, route: Route) -> bytes:
        cached = route.relation.oid, op
        prefix = self._prefixes.get(cached)
        if prefix is None:
            begin = self._begin
            assert begin is not None
            prefix = self._prefixes[cached] = route.encoder.event_prefix(
                op, lsn=begin.final_lsn, xid=begin.xid, ts_ms=begin.commit_ms
            )
        return prefix

    def _publishes(self, route: Route, values: pg.Values) -> bool:
        if not route.feed.judging:
            return True
        begin = self._begin
        assert begin is not None
        return route.feed.publishes(key_of(route, values), begin.xid, begin.final_lsn)

    def _insert(self, message: pg.Insert) -> None:
        if (route := self._next(message.relation, Op.CREATE)) is not None:
            self._write(Op.CREATE, route, message.after if route.row is None else route.row(message.after))
        elif is_table(message.relation, OWNERSHIP):
            self._follow_owner(message.relation, message.after)
        elif is_table(message.relation, REQUESTS) and not self._skipping:
            self._open_requests.append(request_row(message.relation, self._request(message)))

    def _update(self, message: pg.Update) -> None:
        if (route := self._next(message.relation, Op.UPDATE, removes=message.before is not None)) is None:
            if is_table(message.relation, OWNERSHIP):
                self._follow_owner(message.relation, message.after)
            return
        after = message.after if route.row is None else route.row(message.after)
        if (before := message.before) is not None:
            before = before if route.row is None else route.row(before)
            # The old row may have values that the new one omits as unchanged.
            after = [old if new is UNCHANGED else new for new, old in zip(after, before, strict=True)]
            if key_of(route, before) != key_of(route, after):
                # A changed key is a delete and a create, each judged by its own key.
                self._remove(route, before)
                if self._write(Op.CREATE, route, after):
                    self._require_whole(route, after)
                return
        if before is None or route.upserts:
            added = self._write(Op.READ if route.upserts else Op.UPDATE, route, after)
        elif added := self._publishes(route, after):
            prefix = self._prefix(Op.UPDATE, route)
            self._add(route, *route.encoder.update(prefix, self._ordinal, self._now_ms, before, after))
        if added and route.feed.complete_rows:
            self._require_whole(route, after)

    def _delete(self, message: pg.Delete) -> None:
        if (route := self._next(message.relation, Op.DELETE, removes=True)) is not None:
            self._remove(route, message.before if route.row is None else route.row(message.before))

    def _request(self, message: pg.Insert) -> pg.Values:
        if self._text is None:
            return message.after
        try:
            return self._text.row(message.relation, message.after, ())
        except Malformed:
            return message.after  # not valid text: the request is refused when it is taken

    def _write(self, op: Op, route: Route, values: pg.Values) -> bool:
        """Add the record of a new row; return whether it goes to the topic."""
        if not self._publishes(route, values):
            return False
        prefix = self._prefix(op, route)
        self._add(route, *route.encoder.change(prefix, self._ordinal, self._now_ms, values))
        return True

    def _require_whole(self, route: Route, values: pg.Values) -> None:
        """Schedule a read of the row whose record was just added, if that omits a value."""
        if UNCHANGED not in values:
            return
        begin = self._begin
        assert begin is not None
        # From here on: a read of the row waits for every transaction that may have written it since.
        self.unseen.passed(begin.xid)
        self._judging = True
        route.feed.leaves_out(key_of(route, values))

    def _remove(self, route: Route, values: pg.Values) -> None:
        """Add a delete and the tombstone that lets compaction remove the key."""
        if self._publishes(route, values):
            prefix = self._prefix(Op.DELETE, route)
            key, value = route.encoder.delete(prefix, self._ordinal, self._now_ms, values)
            self._add(route, key, value)
            route.feed.waiting.append({"key": key, "value": None})

    def _truncate(self, message: pg.Truncate) -> None:
        left: dict[TableFeed, set[int]] = {}
        for relation in message.relations:
            if (route := self._next(relation, Op.TRUNCATE, removes=True)) is None:
                continue
            others = left.setdefault(route.feed, set(route.feed.leaves))
            others.discard(relation.oid)
            if others:
                continue
            prefix = self._prefix(Op.TRUNCATE, route)
            route.feed.empty(route.encoder.truncate(prefix, self._ordinal, self._now_ms))
            self.published += 1
            if route.feed.judging:
                route.feed.truncated(self.position.commit_lsn)
        for feed, others in left.items():
            if others:
                # Only keys of some partitions were removed, and which ones is no longer known.
                log.get(**{log.SOURCE: feed.source}).warning(
                    "re-snapshotting table from scratch after a truncate of partitions", **{log.TABLE: feed.table.name}
                )
                feed.ask_from_scratch()

    def _follow_owner(self, relation: Relation, values: pg.Values) -> None:
        """Stop or resume publishing the tables of a gitlab schema; do nothing if that is already recorded."""
        begin = self._begin
        assert begin is not None
        gitlab_schema, owner = owner_in(relation, values)
        known = [feed for feed in self._all if feed.table.gitlab_schema == gitlab_schema]
        changed = [feed for feed in known if feed.away == (owner.name == feed.source)]
        passed = self._skipping or self.position != (begin.final_lsn, self._ordinal)
        if passed or gitlab_schema in PER_DATABASE or not changed:
            return
        for feed in changed:
            feed.away = not feed.away
            if feed.away:
                self.strays.watch(feed.table, begin.commit_ms)
        self.handovers[gitlab_schema] = handed_over(changed, owner, self.position) if changed[0].away else None
        self._publish_what_is_here()

    def reroute(self) -> None:
        """Update routes after tables were stopped or their partitions changed."""
        self._publish_what_is_here()

    def _publish_what_is_here(self) -> None:
        self._feeds = {
            (feed.table.relation.schema, feed.table.relation.table): feed for feed in self._all if not feed.away
        }
        self._partitions = {oid: feed for feed in self._all for oid in feed.leaves}
        self._routes.clear()

    def _add(self, route: Route, key: bytes, value: bytes) -> None:
        if len(key) + len(value) > route.feed.largest:
            raise RecordTooLarge(route, len(key) + len(value))
        route.feed.waiting.append({"key": key, "value": value})
        self.published += 1
