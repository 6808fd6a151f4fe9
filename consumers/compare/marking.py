"""Reads a table and its topic into marks, both at the same time, and finds the keys whose marks differ.

The topic is read to its ends E, taken before the table is read, and then on to those after it: a row that equals its
key's last record at either moment is not different. Both sides save how far they are every few seconds.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from consumers.compare import marks
from consumers.compare.table_rows import TableRows
from consumers.compare.time_left import Progress
from consumers.compare.topic_rows import TopicRows
from consumers.compare.work_directory import MarkFiles, WorkDirectory
from infra.service import log
from schemas.codec.header import HeaderReader
from schemas.errors import Interrupted, Malformed
from schemas.positions import Lsn, Position

_RANGE_ROWS: Final = 10_000
_PART_MARKS: Final = 250_000
"""The marks of one side that are compared at a time, about: 40 bytes of memory each, and 24 for each of its file."""
_MOST_PARTS: Final = 1 << 14
_SAVE_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 2.0
_ROWS: Final = "rows"
_RECORDS: Final = "records"

Upper = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that differs, by its hash; the place of its last record, and the range of the table that has its row."""

    key_hash: int
    place: int | None
    range: int | None


@dataclass(frozen=True, slots=True)
class Marked:
    """What marking found: the number of the table's rows, and `differences`, at most one more than allowed.

    The topic was read to `ends`; its last truncate is at `truncated`. `uppers` are the last keys of the ranges.
    """

    rows: int
    differences: list[Difference]
    ends: Mapping[int, int]
    truncated: Position | None
    uppers: list[Upper]
    secret: bytes

    def range(self, number: int) -> tuple[Upper, Upper]:
        """Return the keys after which, and up to which, a range of the table is."""
        return self.uppers[number - 1] if number else None, self.uppers[number]


class Marking:
    """One comparison's reading, which continues what `work` has of an earlier one.

    `comparable` is that of TopicRows.marks.
    """

    def __init__(
        self,
        rows: TableRows,
        topic: TopicRows,
        work: WorkDirectory,
        comparable: Callable[[int], bool],
        stopping: threading.Event,
        lines: log.Log,
    ) -> None:
        self._rows = rows
        self._topic = topic
        self._work = work
        self._comparable = comparable
        self._stopping = stopping
        self._log = lines

    def run(self, identity: Mapping[str, str], most: int) -> Marked:
        """Read both sides and return the differences, but no more than one above `most`.

        Raises Interrupted, and what reading raises; what was read is saved.
        """
        identity = {**identity, **self._rows.identity}
        plan = self._work.begin(identity)
        resumed = plan is not None
        if plan is None:
            begins, ends = self._topic.begins(), self._topic.ends()
            records = sum(end - begins.get(partition, 0) for partition, end in ends.items())
            rows = self._rows.estimated_rows() or records
            plan = self._work.plan(
                identity,
                secret=secrets.token_hex(marks.SECRET_BYTES),
                parts=_parts(max(records, rows)),
                ends=ends,
                records=records,
                rows=rows,
                begins=begins,
            )
        secret, parts = bytes.fromhex(plan["secret"]), int(plan["parts"])
        begins, ends = _offsets(plan["begins"]), _offsets(plan["ends"])
        table = _TableSide(self._rows, self._work, parts, secret)
        topic = _TopicSide(self._topic, self._work, parts, secret, self._comparable, begins)
        self._log.info(
            "comparison resumed" if resumed else "comparison begun",
            rows=table.rows,
            rows_estimated=plan["rows"],
            records=topic.offsets - sum(begins.values()),
            records_estimated=plan["records"],
        )
        progress = Progress(
            {_ROWS: plan["rows"], _RECORDS: sum(ends.values())},
            {_ROWS: table.rows, _RECORDS: topic.offsets},
            self._log,
        )
        self._read_both(table, topic, ends, progress)
        later = self._topic.ends()
        topic.read(later, self._check, progress, later=True)
        return Marked(table.rows, _differences(topic, table, parts, most), later, topic.truncated, table.uppers, secret)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("the comparison was stopped; started again, it continues here")

    def _read_both(self, table: _TableSide, topic: _TopicSide, ends: Mapping[int, int], progress: Progress) -> None:
        ended = threading.Event()
        failed: list[BaseException] = []

        def check() -> None:
            self._check()
            if ended.is_set():
                raise Interrupted("the table could not be read")

        def run() -> None:
            try:
                topic.read(ends, check, progress)
            except BaseException as error:
                failed.append(error)

        def check_table() -> None:
            self._check()
            if failed:
                raise failed[0]

        thread = threading.Thread(target=run, name="read topic", daemon=True)
        thread.start()
        try:
            table.read(check_table, progress)
        except BaseException:
            ended.set()
            thread.join(_PATIENCE_SECONDS)
            raise
        thread.join()
        if failed:
            raise failed[0]


class _TopicSide:
    """The marks of a topic's records from `begins`: until the ends at the beginning, and the `later` ones."""

    def __init__(
        self,
        topic: TopicRows,
        work: WorkDirectory,
        parts: int,
        secret: bytes,
        comparable: Callable[[int], bool],
        begins: Mapping[int, int],
    ) -> None:
        self._topic = topic
        self._work = work
        self._secret = secret
        self._comparable = comparable
        self._header = HeaderReader()
        state = work.load("topic") or {}
        self._reached = _offsets(state.get("reached", begins))
        self.files = MarkFiles(work.path, "topic", parts, state.get("lengths"))
        self.later = MarkFiles(work.path, "later", parts, state.get("later"))
        last = state.get("truncated")
        self.truncated = None if last is None else Position(Lsn(last[0]), last[1])

    @property
    def offsets(self) -> int:
        """The offsets that are read, of all partitions together, those before their beginnings included."""
        return sum(self._reached.values())

    def read(
        self, ends: Mapping[int, int], check: Callable[[], None], progress: Progress, *, later: bool = False
    ) -> None:
        """Read to `ends`, or on to those of `later`."""
        files = self.later if later else self.files
        saved = time.monotonic()
        for made, truncates in self._topic.marks(self._reached, ends, self._comparable, self._secret):
            files.add(made)
            for record in truncates:
                with contextlib.suppress(Malformed):
                    self.truncated = max(
                        filter(None, (self.truncated, self._header(bytes(record.value() or b""))[3])), default=None
                    )
            progress.reached(_RECORDS, self.offsets)
            if time.monotonic() > saved + _SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            check()
        self._save()

    def _save(self) -> None:
        last = self.truncated
        self._work.save(
            "topic",
            {
                "lengths": self.files.flush(),
                "later": self.later.flush(),
                "reached": self._reached,
                "truncated": None if last is None else [last.commit_lsn, last.ordinal],
            },
        )


class _TableSide:
    """The marks of a table's rows, and the last keys of its ranges, a line each in a file."""

    def __init__(self, rows: TableRows, work: WorkDirectory, parts: int, secret: bytes) -> None:
        self._rows = rows
        self._work = work
        self._secret = secret
        state = work.load("table") or {}
        self.rows = int(state.get("rows", 0))
        self.files = MarkFiles(work.path, "table", parts, state.get("lengths"))
        self.uppers: list[Upper] = [
            None if upper is None else tuple(upper) for upper in work.lines("ranges", int(state.get("ranges", 0)))
        ]
        self._unsaved: list[Upper] = []

    def read(self, check: Callable[[], None], progress: Progress) -> None:
        """Read the rest of the table."""
        if self.uppers and self.uppers[-1] is None:
            return
        saved = time.monotonic()
        for each in self._rows.ranges(_RANGE_ROWS, self.uppers[-1] if self.uppers else None):
            self.files.add(self._rows.marks(each.lines, len(self.uppers), self._secret))
            self.rows += each.lines.rows
            self.uppers.append(each.upto)
            self._unsaved.append(each.upto)
            progress.reached(_ROWS, self.rows)
            if time.monotonic() > saved + _SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            check()
        self._save()

    def _save(self) -> None:
        self._work.append("ranges", self._unsaved)
        self._unsaved = []
        self._work.save("table", {"rows": self.rows, "lengths": self.files.flush(), "ranges": len(self.uppers)})


def _offsets(saved: Mapping[Any, Any]) -> dict[int, int]:
    """Return offsets by partition: the keys of what was saved are texts."""
    return {int(partition): int(offset) for partition, offset in saved.items()}


def _parts(entries: int) -> int:
    parts = 1
    while parts < _MOST_PARTS and parts * _PART_MARKS < entries:
        parts *= 2
    return parts


def _differences(topic: _TopicSide, table: _TableSide, parts: int, most: int) -> list[Difference]:
    found: list[Difference] = []
    for part in range(parts):
        each = marks.differences(topic.files.read(part), topic.later.read(part), table.files.read(part))
        for key_hash, place, range_ in marks.MARK.iter_unpack(each):
            found.append(Difference(key_hash, _somewhere(place), _somewhere(range_)))
            if len(found) > most:
                return found
    return found


def _somewhere(place: int) -> int | None:
    return None if place == marks.NOWHERE else place
