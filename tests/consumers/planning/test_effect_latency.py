"""The latency of effects, from the header of a transaction's first event."""

from __future__ import annotations

import time

import pytest
from prometheus_client import REGISTRY

from consumers.contract.decisions import Change
from consumers.planning.effect_latency import EffectLatency
from consumers.planning.planner import SubBatch
from schemas.codec.encoder import Encoder
from schemas.events import Op, Origin
from schemas.positions import Lsn
from tests.consumers.model.topic import PLACES, RELATION, Record

ENCODER = Encoder(RELATION, "gitlab_main", ("id",), origin=Origin("main", "main"), value_schema_id=3, key_schema_id=4)


def record(seconds_ago: float, *, snapshot: bool = False) -> Record:
    at = int((time.time() - seconds_ago) * 1000)
    prefix = ENCODER.event_prefix(Op.CREATE, lsn=Lsn(8), xid=None if snapshot else 7, ts_ms=at, snapshot=snapshot)
    return Record(PLACES[0], 1, ENCODER.change(prefix, 0, at, [b"1", b"2", b"x"])[1])


def observed(name: str, records: list[Record]) -> tuple[float, float]:
    """Return how many changes were counted, and how many of those within a minute."""
    sub_batch = SubBatch(0, len(records))
    sub_batch.origins.extend(records)
    sub_batch.changes.extend(Change("a change") for _ in records)
    EffectLatency(name).observe(sub_batch)
    counts = (
        REGISTRY.get_sample_value(f"headrace_effect_latency_seconds{suffix}", {"migration": name, **labels})
        for suffix, labels in (("_count", {}), ("_bucket", {"le": "60.0"}))
    )
    total, quick = (count or 0.0 for count in counts)
    return total, quick


def test_each_change_counts_with_the_first_event() -> None:
    assert observed("quick", [record(1), record(5_000)]) == (2, 2)
    assert observed("slow", [record(5_000), record(1)]) == (2, 0)


def test_clock_of_the_source_may_be_ahead() -> None:
    assert observed("ahead", [record(-30)]) == (1, 1)


@pytest.mark.parametrize(
    "records",
    [[], [record(1, snapshot=True)], [Record(PLACES[0], 1, b"not an event")], [Record(PLACES[0], 1, None)]],
    ids=["nothing", "snapshot", "malformed", "tombstone"],
)
def test_what_has_no_latency_is_not_counted(records: list[Record]) -> None:
    assert observed("none", records) == (0, 0)
