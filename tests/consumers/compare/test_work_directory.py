"""A killed comparison leaves its progress on disk, and the next process continues with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from consumers.compare import marks, work_directory
from consumers.compare.work_directory import MarkFiles, WorkDirectory, WorkFailed

NAMES = ["localhost:9092", "headrace", "main", "public.t"]
WHICH = {"topic": "an id"}


def some(count: int, place: int = 0) -> bytes:
    return marks.table_marks([b"\0" * 5 + b"%d" % n for n in range(count)], [b"row"] * count, place, bytes(16))


def test_next_process_continues_with_what_was_saved(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path, NAMES) as work:
        assert work.begin(WHICH) is None
        plan = work.plan(WHICH, parts=4)
        files = MarkFiles(work.path, "table", 4)
        files.add(some(100))
        work.append("ranges", [["1"], ["2"]])
        work.save("table", {"lengths": files.flush()})
        # Written and not saved, as by a process that is killed now.
        files.add(some(50, 1))
        files.flush()
        work.append("ranges", [["3"]])
        assert work.path.stat().st_mode & 0o777 == 0o700
    with WorkDirectory(tmp_path, NAMES) as work:
        assert work.begin(WHICH) == plan
        files = MarkFiles(work.path, "table", 4, (work.load("table") or {})["lengths"])
        whole = b"".join(files.read(part) for part in range(4))
        assert sorted(marks.MARK.iter_unpack(whole)) == sorted(marks.MARK.iter_unpack(some(100)))
        assert work.lines("ranges", 2) == [["1"], ["2"]]
        work.append("ranges", [["4"]])
        assert work.lines("ranges", 3) == [["1"], ["2"], ["4"]]
        files.add(some(50, 1))
        files.flush()
        assert sum(len(files.read(part)) for part in range(4)) == 150 * marks.MARK.size
        work.remove()
    assert list(tmp_path.iterdir()) == []


def test_other_topic_other_hashes_an_earlier_boot_and_an_old_plan_start_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(identity: dict[str, str] = WHICH) -> bool:
        with WorkDirectory(tmp_path, NAMES) as work:
            continues = work.begin(identity) is not None
            if not continues:
                assert list(work.path.iterdir()) == []
            work.plan(WHICH)
            return not continues

    assert begun()
    assert not begun()
    assert begun({"topic": "another id"})
    monkeypatch.setattr(marks, "HASHES", "others")
    assert begun()
    assert not begun()
    monkeypatch.setattr(work_directory, "_BOOT", tmp_path / "nowhere")
    assert begun()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    assert begun()


def test_second_process_has_a_directory_of_its_own(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path, NAMES) as first, WorkDirectory(tmp_path, NAMES) as second:
        assert first.path != second.path
        first.plan(WHICH)
        assert second.begin(WHICH) is None


def test_directory_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path, NAMES) as work:
        known = work.path
    known.chmod(0o777)
    for made in ("by another", "as a link"):
        if made == "as a link":
            known.rmdir()
            known.symlink_to(tmp_path / "other")
        with WorkDirectory(tmp_path, NAMES) as work:
            assert work.path != known
            work.remove()


def test_directory_that_no_process_continued_is_removed(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path, NAMES) as work:
        old = work.path
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    with WorkDirectory(tmp_path, [*NAMES, "other"]) as work:
        assert not old.exists()
        held = work.path
        os.utime(held, (yesterday, yesterday))
        with WorkDirectory(tmp_path, NAMES):
            assert held.exists()


def test_lost_marks_and_an_unwritable_place_are_reported(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path, NAMES) as work:
        files = MarkFiles(work.path, "topic", 1)
        files.add(some(3))
        files.flush()
        os.truncate(work.path / "topic-0", 24)
        with pytest.raises(WorkFailed, match="lost marks"):
            files.read(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkFailed, match="cannot hold the comparison"):
        WorkDirectory(tmp_path / "file", NAMES)
