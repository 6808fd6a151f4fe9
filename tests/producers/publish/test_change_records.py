"""Changes that are encoded together in C: the same records as one by one, as those are that take a decision."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from producers.stream import messages as m
from schemas.codec import implementation
from schemas.events import UNCHANGED
from schemas.positions import Lsn, Position
from tests.fuzz.parsers.targets.runs import INSIDE, KEYED, SETUPS, WHOLE, changes, in_block, transaction
from tests.producers.both_ways import MS, Setup, outcomes, payloads

ROW: m.Values = [b"1", b"a", b"b", b"5"]
PLAIN: Sequence[m.Message] = [m.Insert(KEYED, ROW, None), m.Update(KEYED, None, ROW, None), m.Insert(KEYED, ROW, None)]
REMOVED = m.Delete(KEYED, [b"1", UNCHANGED, UNCHANGED, UNCHANGED], None)
REPLACED = m.Update(WHOLE, ROW, [b"1", UNCHANGED, None, b"6"], None)
OMITS = m.Update(KEYED, None, [b"1", UNCHANGED, b"", b"6"], None)
MOVED = m.Update(KEYED, [b"1", UNCHANGED, UNCHANGED, UNCHANGED], [b"2", b"a", b"b", b"5"], None)


def sent(*each: m.Message) -> list[bytes]:
    return payloads([m.Begin(Lsn(80), MS, 5), *each, m.Commit(Lsn(80), Lsn(88), MS)])


@pytest.fixture
def singles(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The changes that are processed one by one in a run."""
    seen: list[object] = []
    one = m.Changes.change
    monkeypatch.setattr(m.Changes, "change", lambda run, index: _noted(seen, one(run, index)))
    return seen


def _noted(seen: list[object], change: object) -> object:
    seen.append(change)
    return change


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("build", [transaction, in_block])
@pytest.mark.parametrize("left_out", range(-1, len(changes(KEYED))))
def test_runs_have_the_records_of_single_changes(setup: Setup, build: object, left_out: int) -> None:
    messages = transaction(setup.relation) if build is transaction else in_block(setup.relation)
    if left_out >= 0:
        del messages[left_out + 2]
    runs, single = outcomes(setup, messages)
    assert runs == single


@pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
@pytest.mark.parametrize(
    ("setup", "more", "alone"),
    [
        (Setup(KEYED), PLAIN, [0, 1]),
        (Setup(KEYED), [REMOVED, *PLAIN, REMOVED], [0, 1, 3]),
        (Setup(KEYED), [OMITS, *PLAIN], [0, 1]),
        (Setup(KEYED, complete_rows=True), [OMITS, *PLAIN], [0, 1, 3]),
        (Setup(KEYED), [MOVED, REMOVED, *PLAIN], [0, 1, 3]),
        (Setup(KEYED, upserts=True), [OMITS, REMOVED, REMOVED], [0, 1, 4]),
        (Setup(WHOLE), [REPLACED] * 3, [0, 1]),
        (Setup(WHOLE, upserts=True, complete_rows=True), [REPLACED] * 3, [0, 1]),
        (Setup(KEYED, recorded=INSIDE, confirmed=70), [REMOVED, REMOVED, *PLAIN, *PLAIN], [0, 1, 2, 3, 5, 6]),
        (Setup(KEYED, copied=False), [REMOVED], [0, 1, 2, 3]),
    ],
)
def test_only_what_takes_a_decision_is_processed_alone(
    setup: Setup, more: Sequence[m.Message], alone: list[int], singles: list[object]
) -> None:
    """The first change of each operation is as well: it makes the route or the transaction's prefix."""
    changes = [*(each._replace(relation=setup.relation) for each in PLAIN), *more]  # type: ignore[call-arg]
    runs, single = outcomes(setup, sent(*changes))
    assert runs == single
    assert singles == [changes[index] for index in alone]


def test_run_of_a_stopped_table_adds_nothing() -> None:
    wide = m.Insert(KEYED, [b"1", b"a" * 200, b"", b"5"], None)
    runs, single = outcomes(Setup(KEYED, largest=150), sent(*PLAIN, wide, *PLAIN))
    assert runs == single
    assert "150" in runs["state"].stopped
    assert len(runs["records"]) == len(PLAIN)


def test_run_that_was_published_before_the_start_is_skipped() -> None:
    recorded = Position(Lsn(80), 2)
    runs, single = outcomes(Setup(KEYED, recorded=recorded, confirmed=88), sent(*PLAIN))
    assert runs == single
    assert runs["records"] == []


def test_run_ends_with_its_transaction() -> None:
    messages = [*sent(*PLAIN), *sent(*PLAIN)[:1], *sent(*PLAIN)[2:]]
    runs, single = outcomes(Setup(KEYED), messages)
    assert runs == single
    assert runs["published"] == 2 * len(PLAIN)
