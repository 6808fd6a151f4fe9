"""The progress that a comparison reports, with a table and a topic that are not read from servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import pytest
import structlog

from consumers.compare import marking, marks
from consumers.compare.marking import Marking
from consumers.compare.table_rows import KeyRange, TableRows
from consumers.compare.time_left import Progress
from consumers.compare.topic_rows import TopicRows
from consumers.compare.work_directory import WorkDirectory
from infra.postgres.copy_out import Lines
from infra.service import log

BEGIN: Final = 5_000_000
ROWS: Final = 40


class FakeTable:
    """A table of ROWS rows, in ranges of ten."""

    identity: Final = {"table": "1"}

    def estimated_rows(self) -> int:
        return ROWS

    def ranges(self, rows: int, after: tuple[str, ...] | None = None) -> Iterator[KeyRange]:
        del rows
        for upto in range(10 + int(after[0] if after else 0), ROWS + 1, 10):
            yield KeyRange(Lines(b"%d" % upto, 10), (str(upto),) if upto < ROWS else None)

    def marks(self, lines: Lines, place: int, secret: bytes) -> bytes:
        del secret
        last = int(lines.data)
        return b"".join(marks.MARK.pack(key << 32, key + 2, place) for key in range(last - 9, last + 1))


class FakeTopic:
    """The same rows as records from offset BEGIN on; the first ones were deleted by retention."""

    def begins(self) -> dict[int, int]:
        return {0: BEGIN}

    def ends(self) -> dict[int, int]:
        return {0: BEGIN + ROWS}

    def marks(
        self, reached: dict[int, int], ends: dict[int, int], comparable: Callable[[int], bool], secret: bytes
    ) -> Iterator[tuple[bytes, list[Any]]]:
        del comparable, secret
        while reached.get(0, 0) < ends[0]:
            key = max(reached.get(0, 0), BEGIN) - BEGIN + 1
            reached[0] = BEGIN + key
            yield marks.MARK.pack(key << 32, key + 2, BEGIN + key - 1), []


def test_offsets_before_the_topics_beginning_count_neither_as_read_nor_for_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[Mapping[str, int], Mapping[str, int]]] = []

    class Noted(Progress):
        """Notes with what it was made."""

        def __init__(self, totals: Mapping[str, int], done: Mapping[str, int], lines: log.Log) -> None:
            super().__init__(totals, done, lines)
            begun.append((dict(totals), dict(done)))

    monkeypatch.setattr(marking, "Progress", Noted)
    with structlog.testing.capture_logs() as lines, WorkDirectory(tmp_path, ["one"]) as work:
        marked = Marking(
            cast(TableRows, FakeTable()), cast(TopicRows, FakeTopic()), work, bool, threading.Event(), log.get()
        ).run({}, 10)
    assert (marked.rows, marked.differences) == (ROWS, [])
    assert (lines[0]["event"], lines[0]["records"], lines[0]["records_estimated"]) == ("comparison begun", 0, ROWS)
    assert begun == [({"rows": ROWS, "records": BEGIN + ROWS}, {"rows": 0, "records": BEGIN})]
