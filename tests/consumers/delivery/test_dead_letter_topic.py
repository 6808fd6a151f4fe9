"""Parked events stand in a compacted topic: parked twice in a run they are one entry, removed they are gone."""

from __future__ import annotations

import pytest

from consumers.delivery.dead_letter_topic import Parked, Parking, read_parked
from consumers.ledger.progress import Place
from infra.kafka import topics
from infra.settings.model import KafkaSettings, Settings
from schemas.errors import BrokerUnavailable
from schemas.positions import Offset

pytestmark = pytest.mark.stack


def event(offset: int, reason: str = "odd", topic: str = "t.a") -> Parked:
    return Parked(Place(topic, 3), Offset(offset), reason, b"key", b"value of %d" % offset)


@pytest.fixture
def parking(settings: Settings) -> Parking:
    return Parking(settings, "m", "main")


def test_nothing_is_parked_where_there_is_no_topic(settings: Settings) -> None:
    assert read_parked(settings, "m") == []


def test_an_entry_tells_where_why_and_in_which_run(settings: Settings, parking: Parking) -> None:
    parking.keep([event(5, "too odd")], 7)
    (entry,) = read_parked(settings, "m")
    assert (entry.name, entry.identity) == ("main/t.a/3/5", (Place("t.a", 3), 5, 7))
    assert (entry.reason, entry.value, entry.key) == ("too odd", b"value of 5", b"key")
    assert entry.parked_at.utcoffset() is not None


def test_parking_twice_in_a_run_is_one_entry_and_the_later_one_counts(settings: Settings, parking: Parking) -> None:
    parking.keep([event(5)], 1)
    Parking(settings, "m", "main").keep([event(5, "odder")], 1)
    (entry,) = read_parked(settings, "m")
    assert (entry.reason, entry.run) == ("odder", 1)


def test_entries_of_another_run_or_database_are_others(settings: Settings, parking: Parking) -> None:
    parking.keep([event(5)], 1)
    parking.keep([event(5)], 2)
    Parking(settings, "m", "ci").keep([event(5)], 1)
    entries = read_parked(settings, "m")
    assert [(entry.database, entry.run) for entry in entries] == [("main", 1), ("ci", 1), ("main", 2)]
    parking.remove(entries[:1])
    assert read_parked(settings, "m") == entries[1:]


def test_entries_come_in_the_order_of_their_offsets(settings: Settings, parking: Parking) -> None:
    parking.keep([event(20), event(3), event(1, topic="t.b"), event(100)], 1)
    assert [entry.name for entry in read_parked(settings, "m")] == [
        *("main/t.a/3/3", "main/t.a/3/20", "main/t.a/3/100", "main/t.b/3/1")
    ]


def test_what_is_removed_is_gone_and_may_be_parked_again(settings: Settings, parking: Parking) -> None:
    parking.keep([event(1), event(2)], 1)
    first, second = read_parked(settings, "m")
    parking.remove([first])
    parking.remove([first])
    assert read_parked(settings, "m") == [second]
    parking.keep([event(1)], 1)
    assert [entry.name for entry in read_parked(settings, "m")] == ["main/t.a/3/1", "main/t.a/3/2"]


def test_a_broker_that_refuses_an_event_is_an_error(settings: Settings) -> None:
    Parking(settings, "m", "main").keep([event(1)], 1)
    # The client itself refuses what is too large; nothing may go on as if it were parked.
    options: dict[str, str | int | float | bool] = {"message.max.bytes": 1000, "message.timeout.ms": 1000}
    small = settings.model_copy(
        update={"kafka": KafkaSettings(bootstrap_servers=settings.kafka.bootstrap_servers, options=options)}
    )
    large = Parked(Place("t", 0), Offset(1), "odd", b"key", b"x" * 5000)
    with pytest.raises(Exception, match=r"too large|MSG_SIZE_TOO_LARGE"):
        Parking(small, "m", "main").keep([large], 1)


def test_a_broker_that_is_gone_is_an_error(
    settings: Settings, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT", 0.5)
    gone = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=f"127.0.0.1:{closed_port}")})
    with pytest.raises(BrokerUnavailable):
        Parking(gone, "m", "main").keep([event(1)], 1)
