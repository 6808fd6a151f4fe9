"""Runs every fuzz target on the kept inputs and some mutations, and proves that each kind of fault is found."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from schemas.codec import implementation
from tests.fuzz.parsers import campaign
from tests.fuzz.parsers.__main__ import names
from tests.fuzz.parsers.campaign import Grew, Hangs, bounded, kept, load_target, mutations
from tests.fuzz.parsers.sample_tables import TABLES
from tests.fuzz.parsers.target import Violation
from tests.producers.pgoutput_encoder import row

CASES = 500
"""Mutations per target; `make fuzz` runs any number, guided by coverage."""


@pytest.fixture(autouse=True)
def _no_alarm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGVTALRM)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("name", names())
def test_parser_satisfies_its_property_for_kept_and_mutated_inputs(name: str) -> None:
    target = load_target(name)
    run = bounded(target.run)
    inputs = [*target.seeds(), *kept(name)]
    for data in [b"", *inputs, *islice(mutations(target, inputs, name), CASES)]:
        run(data)


@pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
def test_difference_between_the_codecs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    number, table = 2, TABLES[2]
    encode = table.python.change
    monkeypatch.setattr(table.python, "change", lambda *arguments: (encode(*arguments)[0], b"else"))
    texts = row(table.rows[0])[2:]
    with pytest.raises(Violation, match="change differ"):
        load_target("rows").run(bytes((number,)) + texts + texts)


def test_error_outside_a_parsers_contract_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(message: bytes) -> Any:
        return message[9]

    monkeypatch.setattr("tests.fuzz.parsers.targets.walk.parse_response", broken)
    with pytest.raises(IndexError):
        load_target("walk").run(b"")


def test_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "SECONDS_A_CASE", 0.05)

    def forever(data: bytes) -> None:
        while data:
            pass

    with pytest.raises(Hangs):
        bounded(forever)(b"x")


def test_unbounded_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter((1 << 10, 1 << 11, 1 << 20))

    class Usage:
        ru_maxrss = property(lambda _: next(peaks))

    monkeypatch.setattr("tests.fuzz.parsers.campaign.resource.getrusage", lambda _: Usage())
    run = bounded(lambda _: None)
    run(b"small")
    run(b"small")
    with pytest.raises(Grew, match="1022 MiB"):
        run(b"large")
