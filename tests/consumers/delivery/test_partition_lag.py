"""The lag of partitions, from a client that knows some of their ends."""

from __future__ import annotations

from typing import Any

from confluent_kafka import OFFSET_INVALID, TopicPartition

from consumers.delivery.partition_lag import lag_of
from consumers.ledger.progress import Place
from schemas.positions import Offset


class Client:
    """Knows the ends of partitions 0 and 1; of 2 it fetched nothing yet."""

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int] | None:
        assert cached, "it must not ask a broker"
        return {0: (0, 100), 1: (0, 40), 2: (OFFSET_INVALID, OFFSET_INVALID)}.get(partition.partition)


def test_lag_is_the_distance_to_the_known_ends() -> None:
    client: Any = Client()
    positions = {
        Place("t", 0): Offset(70),
        Place("t", 1): Offset(41),
        Place("t", 2): Offset(5),
        Place("t", 3): Offset(5),
    }
    assert lag_of(client, positions) == {Place("t", 0): 30, Place("t", 1): 0}
