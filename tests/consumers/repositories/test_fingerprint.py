"""A fingerprint changes whenever an object or a ref does; a repository that is being written to has none."""

from __future__ import annotations

import os
from pathlib import Path

from consumers.repositories.fingerprint import fingerprint
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import make_repository


def _repository(directory: Path) -> Path:
    place = directory / "repository"
    make_repository(place)
    for above, _, names in os.walk(place):
        for name in names:
            os.utime(os.path.join(above, name), (1, 1))
    return place


def test_fingerprint_is_the_same_until_a_change(tmp_path: Path) -> None:
    place = _repository(tmp_path)
    before = result(fingerprint(place))
    assert before == result(fingerprint(place)) != ""
    (place / "description").write_text("no object and no ref")
    assert result(fingerprint(place)) == before


def test_replaced_ref_changes_the_fingerprint(tmp_path: Path) -> None:
    place = _repository(tmp_path)
    before = result(fingerprint(place))
    ref = place / "refs/heads/main"
    made = ref.with_name("main.lock")
    made.write_bytes(b"0" * (ref.stat().st_size - 1) + b"\n")
    os.utime(made, (1, 1))
    made.replace(ref)
    assert result(fingerprint(place)) != before


def test_fingerprint_is_empty_within_a_tick_of_the_clock(tmp_path: Path) -> None:
    place = _repository(tmp_path)
    os.utime(place / "refs/heads/main")
    assert result(fingerprint(place)) == ""
