"""Random histories of a database, a topic and consumers show that the rules of applying hold and are all needed.

The real Applying, Planner, Settler, Hidden and Ends work against a model database in which commits are decoded before
they are visible, and which fails over to a standby that lacks its last commits. Between any two of their steps others
may act, and a process may be killed. See model_history for what happens, and World.require_right for what must hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from consumers.dead_letters import settle
from consumers.delivery import dead_letter_rows
from consumers.ledger import fence
from consumers.ledger.progress import Place
from consumers.planning.planner import SubBatch, Waiting, origin_of
from consumers.planning.prefilter import Record
from consumers.runtime import applying, catch_up
from consumers.runtime.applying import Applying
from consumers.runtime.catch_up import Ends
from schemas.positions import Offset
from schemas.xid_snapshot import Hidden, Snapshot
from tests.consumers.model import session, target
from tests.consumers.model.history import History
from tests.histories import TIMES

HISTORIES = 1_000
"""Each omitted rule is detected within these."""


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the servers by the model."""
    monkeypatch.setattr(fence, "hold", session.hold)
    monkeypatch.setattr(fence, "transaction", session.transaction)
    monkeypatch.setattr(dead_letter_rows, "record", session.record)
    monkeypatch.setattr(dead_letter_rows, "settle", session.settle)
    monkeypatch.setattr(settle, "record_action", lambda *_arguments, **_details: None)
    monkeypatch.setattr(applying, "SHORT_WAITS", (0.0,))
    monkeypatch.setattr(
        catch_up, "written_offsets", lambda world, _: {p.partition: e for p, e in world.topic.ends.items()}
    )


def explore(histories: int, without: frozenset[str] = frozenset()) -> None:
    """Play the same histories every time, up to the first that breaks a rule."""
    for seed in range(histories):
        try:
            History(seed, without).play()
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def test_model_applies_every_wanted_change_once_when_visible() -> None:
    explore(HISTORIES * TIMES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("ownership", "does not own the schema"),
        ("pause", "written while paused"),
        ("run", "continues in run"),
        ("lock of the fence", "does not own the schema|written while paused|continues in run"),
        ("look after the lock", "does not own the schema|written while paused|continues in run"),
        ("compare-and-set of the ledger", r"goes from \d+ to|is applied twice|steps over"),
        ("id of the topic", "steps over|is of no event|never changed"),
        ("dead letter before the ledger advances", "the event of dead letter .* is gone"),
        ("dead letters of the transaction of the ledger", "is applied twice"),
        ("only what is open is settled", "is applied twice"),
        ("settled in the transaction of the effect", "was never applied|never changed"),
        ("run in the key of a dead letter", "the event of dead letter .* is gone"),
        ("late removal", "the event of dead letter .* is gone"),
    ],
)
def test_model_detects_each_omitted_database_rule(rule: str, broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        explore(HISTORIES, frozenset((rule,)))


def applies_whatever_it_sees(self: SubBatch, hidden: Hidden) -> dict[Place, Waiting]:
    del self, hidden
    return {}


def overtakes(record: Record, waiting: Mapping[Place, Waiting]) -> bool:
    """Omits that later events of the partition wait too."""
    place, offset = origin_of(record)
    return place in waiting and offset == waiting[place].offset


def settles_what_was_read_behind(self: Applying) -> Mapping[Place, Offset]:
    """Omits that no further records of a waiting partition are planned."""
    return self._group.positions


def looks_at_its_own_partitions(self: Ends, positions: Mapping[Place, Offset], ledger: object) -> bool:
    del ledger
    return all(position >= self._ends.get(place, 0) for place, position in positions.items())


class ListedAlone(Hidden):
    """Omits ids at or above the snapshot's xmax."""

    def __init__(self, snapshot: Snapshot, next_xid: int) -> None:
        super().__init__(snapshot, min(next_xid, snapshot.xmax))


class OfOneEpoch(Hidden):
    """Omits that an event has only the low half of its transaction's id."""

    def any_of(self, xids: Iterable[int | None]) -> bool:
        return any(self.full(xid) == xid for xid in xids if xid is not None)


@pytest.mark.parametrize(
    ("place", "name", "without", "broken"),
    [
        (SubBatch, "waiting", applies_whatever_it_sees, "before their transactions are visible"),
        (applying, "_beyond", overtakes, "steps over"),
        (Applying, "_positions", settles_what_was_read_behind, "steps over"),
        (Ends, "reached", looks_at_its_own_partitions, "said to be caught up"),
        (target, "Hidden", ListedAlone, "before their transactions are visible"),
        (target, "Hidden", OfOneEpoch, "before their transactions are visible"),
    ],
)
def test_model_detects_each_omitted_consumer_rule(
    place: object, name: str, without: object, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, without)
    with pytest.raises(AssertionError, match=broken):
        explore(HISTORIES)
