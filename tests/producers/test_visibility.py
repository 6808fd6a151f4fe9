"""What a snapshot sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.visibility import Snapshot

XID = st.integers(min_value=3, max_value=2**40)


def test_reads_and_prints_the_text_form() -> None:
    assert str(Snapshot.parse("795:799:795,797")) == "795:799:795,797"
    assert str(Snapshot.parse("10:10:")) == "10:10:"


@pytest.mark.parametrize("text", ["", "1:2", "1:2:x", "a:b:c", "1:2:3:4"])
def test_refuses_what_is_no_snapshot(text: str) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        Snapshot.parse(text)


def test_sees_what_ended_before_it_and_nothing_else() -> None:
    snapshot = Snapshot.parse("795:799:795,797")
    assert [xid for xid in range(790, 803) if snapshot.sees(xid)] == [790, 791, 792, 793, 794, 796, 798]


@given(xmax=XID, distance=st.integers(min_value=-(2**31) + 1, max_value=2**31 - 1))
def test_half_an_id_finds_its_epoch_by_nearness(xmax: int, distance: int) -> None:
    xid = max(3, xmax + distance)
    assert Snapshot(xmax, xmax).sees(xid % 2**32) == (xid < xmax)
