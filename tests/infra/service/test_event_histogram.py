"""The histogram of events against prometheus-client's own, which is observed once for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from infra.service.event_histogram import EventHistogram

BUCKETS = (0.1, 1.0, 5.0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.1, 0.5, 1.0, 5.0, 9.0]), st.integers(1, 5))))
def test_it_exports_what_a_histogram_with_an_observation_per_event_does(seen: list[tuple[str, float, int]]) -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    ours = EventHistogram("x_seconds", "Some time.", "table", BUCKETS, one)
    theirs = Histogram("x_seconds", "Some time.", ["table"], buckets=BUCKETS, registry=other)
    for label, value, events in seen:
        ours.observe(label, value, events)
        for _ in range(events):
            theirs.labels(label).observe(value)
    assert samples(one) == samples(other)


def samples(registry: CollectorRegistry) -> list[str]:
    """The exported lines but the time of creation, and with sums rounded."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    return sorted(
        f"{line.rpartition(' ')[0]} {float(line.rpartition(' ')[2]):.6f}" if not line.startswith("#") else line
        for line in lines
    )
