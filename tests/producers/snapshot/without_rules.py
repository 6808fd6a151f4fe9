"""The parts of a snapshot, each without one of its rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from infra.state.positions import IncompleteState
from infra.state.snapshot_requests import RequestRow
from producers.publish.capture import Capture
from producers.publish.partition_routes import Route, key_of
from producers.publish.table_publisher import TableFeed
from producers.snapshot.chunk_rules import Chunk, Key, TableChunks, Unseen
from producers.snapshot.incomplete_rows import IncompleteRows
from producers.snapshot.resnapshot_rules import KeyRange, RememberedChunk, Reread, Texts
from producers.snapshot.table_snapshot import Bounds, TableCopy
from producers.stream import messages as pg
from schemas.events import UNCHANGED, Op
from schemas.positions import Lsn, Position
from schemas.xid_snapshot import Moment, Snapshot


class PublishesWhatIsNotCopied(TableChunks):
    def publishes(self, key: Key, xid: int, commit_lsn: Lsn) -> bool:
        return not self._copied_here(key) or super().publishes(key, xid, commit_lsn)

    def _copied_here(self, key: Key) -> bool:
        return any(
            (chunk.after is None or chunk.after < key) and (chunk.upto is None or key <= chunk.upto)
            for chunk in self.chunks
        )


class PublishesWhatAChunkShows(PublishesWhatIsNotCopied):
    def publishes(self, key: Key, xid: int, commit_lsn: Lsn) -> bool:
        del xid, commit_lsn
        return self._copied_here(key)


class JudgesBehindTheChunk(PublishesWhatIsNotCopied):
    """Drops the rule that commits after a chunk's LSN are published whatever its snapshot says."""

    def publishes(self, key: Key, xid: int, commit_lsn: Lsn) -> bool:
        return super(PublishesWhatIsNotCopied, self).publishes(key, xid, Lsn(min(commit_lsn, 0)))


class ForgetsChunksAtOnce(TableChunks):
    def passed(self, lsn: Lsn) -> bool:
        return super().passed(Lsn(max(lsn, 1 << 63)))


class MergesWithWhatIsNotPassed(TableChunks):
    """Settles adjacent chunks when one is passed."""

    def passed(self, lsn: Lsn) -> bool:
        return super().passed(lsn) and (super().passed(Lsn(1 << 63)) or True)


class AwaitsNothing(Unseen):
    def visible_in(self, snapshot: Snapshot) -> bool:
        super().visible_in(snapshot)
        return True


class NotesNothing(Unseen):
    def passed(self, xid: int) -> None:
        del xid


class OverlooksTruncates(TableCopy):
    def truncated(self) -> None:
        pass


class RemembersNoKeys(RememberedChunk):
    """Publishes events that the rows already include."""

    def publishes(self, key: bytes, xid: int, commit_lsn: Lsn) -> bool:
        del key, xid, commit_lsn
        return True


class TakesEveryKeyForRemembered(RememberedChunk):
    """Drops the deletes that no row could show."""

    def publishes(self, key: bytes, xid: int, commit_lsn: Lsn) -> bool:
        del key
        return not self.moment.shows(xid, commit_lsn)


class ForgetsKeysAtOnce(Reread):
    def passed(self, lsn: Lsn) -> Reread:
        return super().passed(Lsn(max(lsn, 1 << 63)))


class RereadsAsIfForTheFirstTime(TableCopy):
    """Drops events by range although the topic has rows there."""

    def ask(self, range_: KeyRange, not_before: int) -> None:
        del range_
        if self.complete:
            self._load(self.state.model_copy(update={"copied": (), "done": False, "not_before": not_before}))


class AsksWithoutWaiting(TableCopy):
    """Does not wait for transactions that began before the copy."""

    def ask(self, range_: KeyRange, not_before: int) -> None:
        super().ask(range_, min(not_before, 0))


class ReadsWhatIsRecordedAgain(Capture):
    """Ignores that a transaction may span commits."""

    def __init__(self, feeds: Iterable[TableFeed], position: Position, confirmed: Lsn, unseen: Unseen) -> None:
        super().__init__(feeds, position, confirmed, unseen)
        self._recorded = Position(position.commit_lsn, -1)


class HoldsRequestsBack(Capture):
    """Takes no requests inside a transaction, although the slot may advance past them."""

    def take_requests(self) -> list[RequestRow]:
        return [] if self._begin is not None else super().take_requests()


class PublishesWhatRowsShow(IncompleteRows):
    """Publishes events that rows read by key already include."""

    def publishes(self, key: bytes, xid: int, commit_lsn: Lsn) -> bool:
        del key, xid, commit_lsn
        return True


class ForgetsRowsAtOnce(IncompleteRows):
    def passed(self, lsn: Lsn) -> bool:
        return super().passed(Lsn(max(lsn, 1 << 63)))


class LosesKeysWhenKilled(IncompleteRows):
    @property
    def state(self) -> IncompleteState:
        return super().state.model_copy(update={"keys": ()})


class LosesRowsWhenKilled(IncompleteRows):
    @property
    def state(self) -> IncompleteState:
        return super().state.model_copy(update={"snapshot": None, "lsn": None, "read": ""})


class ReadsRowsWithoutWaiting(Capture):
    """Does not wait until the transaction that omitted the value is visible."""

    def _require_whole(self, route: Route, values: pg.Values) -> None:
        if UNCHANGED in values:
            route.feed.leaves_out(key_of(route, values))


class NotesWhatIsNotPublished(Capture):
    """Reads rows by key in ranges not yet copied, where their delete is not published."""

    def _write(self, op: Op, route: Route, values: pg.Values) -> bool:
        super()._write(op, route, values)
        return True


class GivesRangesTwice(TableCopy):
    """Gives a range that a worker reads to another one, too."""

    def begin(self, bounds: Bounds) -> None:
        del bounds

    def planned(self, bounds: Bounds, upto: Texts) -> None:
        del bounds, upto

    def end(self, bounds: Bounds) -> None:
        del bounds


class JudgesByOneMoment(TableCopy):
    """Judges the events of all chunks by the latest of their snapshots."""

    _latest: Moment | None = None

    def copied(self, bounds: Bounds, upto: Texts | None, moment: Moment, keys: Iterable[bytes], rows: int) -> None:
        self._latest = max((self._latest or moment, moment), key=lambda each: each.lsn)
        super().copied(bounds, upto, self._latest, keys, rows)


class TakesTheEndOfAGapForTheEndOfAll(TableCopy):
    """Takes a chunk that extends to the end of its bounds for one to the end of the table."""

    def copied(self, bounds: Bounds, upto: Texts | None, moment: Moment, keys: Iterable[bytes], rows: int) -> None:
        super().copied(replace(bounds, last=None), upto, moment, keys, rows)


class ReadsRowsNextToChunks(TableCopy):
    """Reads rows by key while a worker reads a chunk that may have them."""

    def rows_due(self, now: float) -> bool:
        by_key = any(bounds.keys for bounds in self._reading)
        return not by_key and self.remembered is None and self.incomplete.due(now, copying=self.ready)


class SkipsGaps(TableChunks):
    """Continues after the last range that was copied."""

    def gap(self, reading: Collection[Chunk] = ()) -> Chunk | None:
        before = [*self.chunks, *reading]
        if not before:
            return super().gap()
        last = max(before, key=lambda chunk: (chunk.upto is None, chunk.upto or ()))
        return None if last.upto is None else Chunk(last.upto, None)


def forgets_keys_when_killed(keys: Iterable[bytes]) -> str:
    del keys
    return ""
