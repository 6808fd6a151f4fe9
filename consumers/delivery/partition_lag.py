"""Computes how far a consumer is behind the ends of its partitions, without asking a broker."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import Consumer, TopicPartition

from consumers.ledger.progress import Place
from schemas.positions import Offset


def lag_of(client: Consumer, positions: Mapping[Place, Offset]) -> dict[Place, int]:
    """Return the offsets between each of `positions` and the partition's end as last fetched.

    Leaves out partitions of which nothing was fetched yet.
    """
    found = {}
    for place, offset in positions.items():
        ends = client.get_watermark_offsets(TopicPartition(*place), cached=True)
        if ends is not None and ends[1] >= 0:
            found[place] = max(0, ends[1] - offset)
    return found
