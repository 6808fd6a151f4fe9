"""Visibility of transactions in a snapshot."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.positions import Lsn
from schemas.xid_snapshot import Hidden, Moment, Snapshot

XID = st.integers(min_value=3, max_value=2**40)


def test_reads_and_prints_the_text_form() -> None:
    assert str(Snapshot.parse("795:799:795,797")) == "795:799:795,797"
    assert str(Snapshot.parse("10:10:")) == "10:10:"


@pytest.mark.parametrize("text", ["", "1:2", "1:2:x", "a:b:c", "1:2:3:4"])
def test_invalid_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        Snapshot.parse(text)


def test_snapshot_sees_only_transactions_that_ended_before_it() -> None:
    snapshot = Snapshot.parse("795:799:795,797")
    assert [xid for xid in range(790, 803) if snapshot.sees(xid)] == [790, 791, 792, 793, 794, 796, 798]


@given(xmax=XID, distance=st.integers(min_value=-(2**31) + 1, max_value=2**31 - 1))
def test_half_an_id_finds_its_epoch_by_nearness(xmax: int, distance: int) -> None:
    xid = max(3, xmax + distance)
    assert Snapshot(xmax, xmax).sees(xid % 2**32) == (xid < xmax)


def test_moment_shows_what_its_snapshot_sees_and_that_committed_before_its_position() -> None:
    moment = Moment(Snapshot.parse("795:799:795,797"), Lsn(1000))
    assert [xid for xid in range(793, 801) if moment.shows(xid, Lsn(999))] == [793, 794, 796, 798]
    assert not any(moment.shows(xid, Lsn(1000)) for xid in range(793, 801))


def test_moment_is_recorded_until_it_is_passed() -> None:
    assert Moment.recorded("795:799:795,797", Lsn(1000)) == Moment(Snapshot(795, 799, frozenset({795, 797})), Lsn(1000))
    assert Moment.recorded(None, None) is None


def hidden_among(candidates: range, hidden: Hidden) -> list[int]:
    return [xid for xid in candidates if hidden.full(xid % 2**32) is not None]


def test_hidden_are_those_in_progress_and_those_given_out_since() -> None:
    hidden = Hidden(Snapshot.parse("795:799:795,797"), 803)
    assert hidden_among(range(700, 900), hidden) == [795, 797, 799, 800, 801, 802]
    assert hidden.full(797) == 797


def test_a_row_of_a_snapshot_is_of_no_transaction_and_never_hidden() -> None:
    hidden = Hidden(Snapshot.parse("795:799:795"), 803)
    assert hidden.full(None) is None
    assert not hidden.any_of([None, None])
    assert hidden.any_of([None, 795])


def test_transaction_lost_in_a_failover_is_not_hidden() -> None:
    """The server never gave such an id out, so there is nothing of it to become visible."""
    assert Hidden(Snapshot.parse("795:799:"), 800).full(5_000) is None


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_the_id_of_a_hidden_transaction_is_found_across_the_end_of_32_bits(epoch: int) -> None:
    low = (epoch << 32) + 2**32 - 3
    hidden = Hidden(Snapshot(low, low + 2, frozenset({low})), low + 6)
    expected = [low, *range(low + 2, low + 6)]
    assert [hidden.full(xid % 2**32) for xid in expected] == expected
    assert hidden.any_of([(low + 5) % 2**32])
    assert not hidden.any_of([(low + 1) % 2**32, (low - 1) % 2**32, (low + 6) % 2**32])


def test_an_old_event_is_not_hidden_whatever_its_epoch() -> None:
    """Three thousand million transactions later the nearest high half would be the wrong one."""
    now = 5 * 2**32
    assert not Hidden(Snapshot(now, now), now + 1).any_of([(now - 3_000_000_000) % 2**32])


def test_one_transaction_with_a_million_subtransactions_is_no_set_of_a_million() -> None:
    hidden = Hidden(Snapshot.parse("100:100:"), 1_000_100)
    assert hidden.any_of([500_000])
    assert hidden.full(500_000) == 500_000
    assert not hidden.any_of([99, 1_000_100])


def test_any_of_agrees_with_full() -> None:
    chance = random.Random(5)
    for _ in range(300):
        xmax = chance.randrange(3, 2**34)
        width = chance.choice((0, 1, 5, 5_000))
        listed = frozenset(chance.sample(range(max(3, xmax - 50), xmax), k=min(4, xmax - max(3, xmax - 50))))
        hidden = Hidden(Snapshot(min(listed, default=xmax), xmax, listed), xmax + width)
        for near in range(xmax - 60, xmax + width + 10, max(1, width // 50)):
            assert hidden.any_of([near % 2**32]) == (hidden.full(near % 2**32) is not None)
