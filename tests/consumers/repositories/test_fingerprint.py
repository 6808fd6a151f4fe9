"""A fingerprint differs whenever an object comes or goes, or a ref is set; none is had of what is being written."""

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


def test_it_is_the_same_until_something_changes(tmp_path: Path) -> None:
    place = _repository(tmp_path)
    before = result(fingerprint(place))
    assert before == result(fingerprint(place)) != ""
    (place / "description").write_text("no object and no ref")
    assert result(fingerprint(place)) == before


def test_a_ref_that_is_put_in_the_place_of_one_that_looks_the_same_is_another(tmp_path: Path) -> None:
    place = _repository(tmp_path)
    before = result(fingerprint(place))
    ref = place / "refs/heads/main"
    made = ref.with_name("main.lock")
    made.write_bytes(b"0" * (ref.stat().st_size - 1) + b"\n")
    os.utime(made, (1, 1))
    made.replace(ref)
    assert result(fingerprint(place)) != before


def test_there_is_none_of_what_was_written_within_a_step_of_the_clock(tmp_path: Path) -> None:
    place = _repository(tmp_path)
    os.utime(place / "refs/heads/main")
    assert result(fingerprint(place)) == ""
