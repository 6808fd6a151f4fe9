"""Dead letters are in a compacted topic: written twice in a run they are one entry, and they can be removed."""

from __future__ import annotations

import pytest

from consumers.delivery.dead_letter_topic import DeadLetterWriter, NewDeadLetter, read_dead_letters_topic
from consumers.ledger.progress import Place
from infra.kafka import topics
from infra.settings.model import KafkaSettings, Settings
from schemas.errors import BrokerUnavailable
from schemas.positions import Offset

pytestmark = pytest.mark.stack


def event(offset: int, reason: str = "odd", topic: str = "t.a") -> NewDeadLetter:
    return NewDeadLetter(Place(topic, 3), Offset(offset), reason, b"key", b"value of %d" % offset)


@pytest.fixture
def dead_letter_writer(settings: Settings) -> DeadLetterWriter:
    return DeadLetterWriter(settings, "m", "main")


def test_missing_topic_has_no_dead_letters(settings: Settings) -> None:
    assert read_dead_letters_topic(settings, "m") == []


def test_entry_has_position_reason_and_run(settings: Settings, dead_letter_writer: DeadLetterWriter) -> None:
    dead_letter_writer.keep([event(5, "too odd")], 7)
    (entry,) = read_dead_letters_topic(settings, "m")
    assert (entry.name, entry.identity) == ("main/t.a/3/5", (Place("t.a", 3), 5, 7))
    assert (entry.reason, entry.value, entry.key) == ("too odd", b"value of 5", b"key")
    assert entry.recorded_at.utcoffset() is not None


def test_writing_twice_in_a_run_keeps_the_later_entry(settings: Settings, dead_letter_writer: DeadLetterWriter) -> None:
    dead_letter_writer.keep([event(5)], 1)
    DeadLetterWriter(settings, "m", "main").keep([event(5, "odder")], 1)
    (entry,) = read_dead_letters_topic(settings, "m")
    assert (entry.reason, entry.run) == ("odder", 1)


def test_entries_of_other_runs_and_databases_are_distinct(
    settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    dead_letter_writer.keep([event(5)], 1)
    dead_letter_writer.keep([event(5)], 2)
    DeadLetterWriter(settings, "m", "ci").keep([event(5)], 1)
    entries = read_dead_letters_topic(settings, "m")
    assert [(entry.database, entry.run) for entry in entries] == [("main", 1), ("ci", 1), ("main", 2)]
    dead_letter_writer.remove(entries[:1])
    assert read_dead_letters_topic(settings, "m") == entries[1:]


def test_entries_are_ordered_by_offset(settings: Settings, dead_letter_writer: DeadLetterWriter) -> None:
    dead_letter_writer.keep([event(20), event(3), event(1, topic="t.b"), event(100)], 1)
    assert [entry.name for entry in read_dead_letters_topic(settings, "m")] == [
        *("main/t.a/3/3", "main/t.a/3/20", "main/t.a/3/100", "main/t.b/3/1")
    ]


def test_removed_entry_is_gone_and_can_be_written_again(
    settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    dead_letter_writer.keep([event(1), event(2)], 1)
    first, second = read_dead_letters_topic(settings, "m")
    dead_letter_writer.remove([first])
    dead_letter_writer.remove([first])
    assert read_dead_letters_topic(settings, "m") == [second]
    dead_letter_writer.keep([event(1)], 1)
    assert [entry.name for entry in read_dead_letters_topic(settings, "m")] == ["main/t.a/3/1", "main/t.a/3/2"]


def test_rejection_by_broker_is_an_error(settings: Settings) -> None:
    DeadLetterWriter(settings, "m", "main").keep([event(1)], 1)
    # The client rejects a record that is too large; the consumer must not continue as if it were a dead letter.
    options: dict[str, str | int | float | bool] = {"message.max.bytes": 1000, "message.timeout.ms": 1000}
    small = settings.model_copy(
        update={"kafka": KafkaSettings(bootstrap_servers=settings.kafka.bootstrap_servers, options=options)}
    )
    large = NewDeadLetter(Place("t", 0), Offset(1), "odd", b"key", b"x" * 5000)
    with pytest.raises(Exception, match=r"too large|MSG_SIZE_TOO_LARGE"):
        DeadLetterWriter(small, "m", "main").keep([large], 1)


def test_unreachable_broker_is_an_error(settings: Settings, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT", 0.5)
    gone = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=f"127.0.0.1:{closed_port}")})
    with pytest.raises(BrokerUnavailable):
        DeadLetterWriter(gone, "m", "main").keep([event(1)], 1)
