"""The compiled codec on a build with sanitizers; `make test SANITIZE=1` runs all of tests/schemas on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import UsageError
from tests.schemas.codec import sanitized

CHECKOUT = Path(__file__).parents[3]
TESTS = (
    "test_compiled_rows.py",
    "test_compiled_events.py",
    "test_leaks.py",
    "test_libpq_lines.py",
    "test_libpq_messages.py",
)
LONG = "block or of_the_stream or lines_are or events_are or any_bytes or is_the_sequence or broken_tuple or every_kind"
"""Tests with large rows or random examples, which take minutes on such a build."""


@pytest.mark.long
def test_codec_reads_and_writes_only_what_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    try:
        built = sanitized.build()
    except UsageError as error:
        pytest.skip(str(error))
    here = Path(__file__).parent.relative_to(CHECKOUT)
    chosen = [str(here / name) for name in TESTS]
    ended = sanitized.run_tests(built, ["-q", "-n", "0", "-k", f"not ({LONG})", *chosen], tmp_path / "log")
    assert ended == 0, (tmp_path / "log").read_text(errors="replace")[-8000:]
