"""Sixteen orders keep the rule of one: the steps of the proof in docs/how-to/routing.md as properties of the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.routing.lookup import Cursor, Reading
from consumers.routing.placement import PARTITIONS, Algorithm, order_key, partition_of

NAMES = [f"github.com/team-{number % 7}/repository-{number}" for number in range(160)]
ORDERED = {
    partition: sorted((name for name in NAMES if partition_of(name) == partition), key=order_key)
    for partition in range(PARTITIONS)
}

MOVED = st.fixed_dictionaries({partition: st.integers(0, len(names)) for partition, names in ORDERED.items()})
"""Partition → how many of its names were passed, in order."""


def passed(moved: Mapping[int, int]) -> set[str]:
    return {name for partition, count in moved.items() for name in ORDERED[partition][:count]}


def reading(moved: Mapping[int, int]) -> Reading:
    """Return the table's content then."""
    return Reading(
        0.0,
        {
            partition: Cursor(order_key(ORDERED[partition][count - 1]) if count else None, False)
            for partition, count in moved.items()
        },
    )


def sent_on(by: Reading) -> set[str]:
    return {name for name in NAMES if by.algorithm(name) is Algorithm.RENDEZVOUS}


def rule_of_one(names: Sequence[str], latest: bytes | None) -> set[str]:
    """Return the names that get the new hash by the rule of the seed: those that are not after the latest one."""
    return {name for name in names if latest is not None and order_key(name) <= latest}


def test_each_name_is_in_exactly_one_partition() -> None:
    assert all(len(names) > 1 for names in ORDERED.values())
    assert sorted(name for names in ORDERED.values() for name in names) == sorted(NAMES)


@pytest.mark.long
@given(MOVED)
def test_each_partition_keeps_the_rule_of_one_order(moved: Mapping[int, int]) -> None:
    by = reading(moved)
    for partition, names in ORDERED.items():
        assert sent_on(by) & set(names) == rule_of_one(names, by.cursors[partition].upto)


@pytest.mark.long
@given(MOVED, MOVED)
def test_name_depends_only_on_its_own_partitions_cursor(moved: Mapping[int, int], others: Mapping[int, int]) -> None:
    for partition, names in ORDERED.items():
        by = reading({**others, partition: moved[partition]})
        assert sent_on(by) & set(names) == sent_on(reading(moved)) & set(names)


@given(MOVED, st.data())
def test_cursors_of_different_moments_route_only_passed_names(moved: Mapping[int, int], data: st.DataObject) -> None:
    torn = {partition: data.draw(st.integers(0, count)) for partition, count in moved.items()}
    assert sent_on(reading(torn)) <= passed(moved)
    assert sent_on(reading(moved)) == passed(moved)


@given(MOVED)
def test_combined_cursor_routes_no_other_names(moved: Mapping[int, int]) -> None:
    ordered = sorted(NAMES, key=order_key)
    left = [name for name in ordered if name not in passed(moved)]
    first = ordered.index(left[0]) if left else len(ordered)
    latest = order_key(ordered[first - 1]) if first else None
    assert rule_of_one(NAMES, latest) <= sent_on(reading(moved))
