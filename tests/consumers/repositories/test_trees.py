"""A file is copied with all its attributes, or not at all; temporary files of processes are left out."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from consumers.repositories.storage import NotAPlace
from consumers.repositories.trees import Changing, copy_file, entry, walk
from tests.consumers.gitserver.kinds.registry import write
from tests.consumers.gitserver.steps import result


def test_large_file_is_copied_in_blocks_with_mode_and_time(tmp_path: Path) -> None:
    source, target = write(tmp_path / "source", b"", 0o2750), tmp_path / "target"
    os.truncate(source, 64 << 20)
    os.utime(source, ns=(1, 1_234_567_891))
    tracemalloc.start()
    copied = result(copy_file(source, target, 60))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert copied == entry(source) == entry(target)
    assert most < 8 << 20


def test_file_that_keeps_changing_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source")
    monkeypatch.setattr("consumers.repositories.trees.dress", lambda one, _: write(one, one.read_bytes() + b"x"))
    with pytest.raises(Changing, match="source keeps changing"):
        result(copy_file(source, tmp_path / "target", 60))
    assert not (tmp_path / "target").exists()


def test_locks_and_quarantined_objects_are_left_out(tmp_path: Path) -> None:
    work = (
        "HEAD.lock",
        "gc.pid",
        "refs/heads/x.lock",
        "objects/tmp_objdir-incoming-x/aa/bb",
        "objects/pack/tmp_pack_x",
    )
    kept = ("lfs/x.lock", "modules/a/HEAD.lock", "locked", "objects/pack/pack-x.pack", "worktrees/w/locked")
    for name in (*work, "objects/aa/tmp_obj_x", "worktrees/w/index.lock", "headrace-moving", *kept):
        write(tmp_path / name)
    found = result(walk(tmp_path, files_only=False))
    assert {path for path, each in found.items() if each.kind == "file"} == set(kept)
    assert "objects/pack/pack-x.pack" not in result(walk(tmp_path, files_only=True))


@pytest.mark.parametrize(
    ("link", "problem"), [("../../x", "points out of the repository"), ("{top}/real", "to the old place")]
)
def test_links_that_depend_on_the_place_are_refused(tmp_path: Path, link: str, problem: str) -> None:
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom/link").symlink_to(link.format(top=tmp_path))
    with pytest.raises(NotAPlace, match=problem):
        result(walk(tmp_path, files_only=True))
