"""The rounds of `make chaos`: which modules play, in which order, and the report of a broken promise."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest

from tests.chaos import __main__ as chaos


def test_plays_finds_every_module_with_rounds() -> None:
    assert {"producer", "switchovers", "visibility"} <= chaos.plays().keys()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Played instead of the real modules: `calm`, and `wild`, which breaks a promise with seed 9."""
    played: list[tuple[str, int]] = []

    def calm(_stack: Any, _directory: Any, seed: int, _seconds: float) -> dict[str, Any]:
        played.append(("calm", seed))
        return {}

    def wild(_stack: Any, _directory: Any, seed: int, _seconds: float) -> dict[str, Any]:
        played.append(("wild", seed))
        assert seed != 9, "a row was lost"
        return {}

    monkeypatch.setattr(chaos, "plays", lambda: {"wild": wild, "calm": calm})
    monkeypatch.setattr(chaos, "embedded_stack", lambda **_: contextlib.nullcontext())
    return played


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["chaos", *arguments])
    return chaos.main()


def test_modules_take_turns_each_with_the_next_seed(
    rounds: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "--seed", "4", "--rounds", "3") == 0
    assert rounds == [("calm", 4), ("wild", 5), ("calm", 6)]


def test_only_plays_a_single_module(rounds: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--seed", "4", "--rounds", "2", "--only", "wild") == 0
    assert rounds == [("wild", 4), ("wild", 5)]


def test_broken_promise_prints_its_seed_and_ends_the_run(
    rounds: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--seed", "8", "--rounds", "5", "--only", "wild") == 1
    assert len(rounds) == 2
    assert "wild, seed 9: a row was lost" in capsys.readouterr().err


def test_broken_promise_prints_the_command_to_repeat_it(
    rounds: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--seed", "9", "--only", "wild") == 1
    assert "make chaos ONLY=wild SEED=9" in capsys.readouterr().err
    assert rounds == [("wild", 9)]


def test_keep_going_continues_after_a_broken_promise_and_fails_at_the_end(
    rounds: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--seed", "8", "--rounds", "4", "--only", "wild", "--keep-going") == 1
    assert rounds == [("wild", 8), ("wild", 9), ("wild", 10), ("wild", 11)]
    assert "1 of 4 rounds broke a promise; seeds: [9]" in capsys.readouterr().err
