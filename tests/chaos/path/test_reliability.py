"""The reliability page says for each fault how often it was tried, and claims results only for faults that were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.path import reliability
from tests.chaos.path.faults import CUT_OFF, KILLED, KINDS, Happened
from tests.chaos.path.round import Story
from tests.chaos.path.targets import BROKER, PRODUCER, ROLES

FIGURES = {"acknowledged": 1_000, "events": 2_000, "effects": 1_900, "seconds": 60}
PROGRESS = [(10.0, 5), (11.0, 5), (12.0, 5), (15.5, 9)]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    results = tmp_path / "results.jsonl"
    faults = [Happened(KILLED, PRODUCER, 10.5, 12.5), Happened(KILLED, PRODUCER, 15.0, 15.6)]
    reliability.add(results, Story(7, None, faults, FIGURES, PROGRESS), brokers=3)
    reliability.add(results, Story(8, None, faults[:1], FIGURES, PROGRESS), brokers=3)
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    reliability.write(results)
    return (tmp_path / reliability.PAGE).read_text()


def test_page_has_a_line_for_every_fault(page: str) -> None:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    for role in ROLES:
        for kind in KINDS:
            assert sum(line.startswith(f"| {role} {kind} (") for line in lines) == 1


def test_line_has_the_number_of_tries_and_the_time_without_progress(page: str) -> None:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {PRODUCER} {KILLED} ")]
    assert "| 3 |" in line
    assert "at most 3.0 s" in line


def test_line_of_an_untried_fault_says_not_tried(page: str) -> None:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {BROKER} {CUT_OFF} ")]
    assert line.endswith("| not tried |")


def test_page_counts_rounds_and_broken_promises(page: str) -> None:
    assert "2 rounds (seeds 7, 8)" in page
    assert "**0 broken promises**" in page
