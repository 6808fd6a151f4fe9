"""The state of sources in the positions topic."""

from __future__ import annotations

import pytest

from infra.kafka import clients, topics
from infra.settings.model import KafkaSettings, Settings
from infra.state.positions import (
    HandoverState,
    Positions,
    SnapshotState,
    SourceState,
    StrayState,
    StreamState,
    handover_key,
    read_sources,
    record_key,
    stray_key,
)
from schemas.positions import Lsn, Position
from schemas.topics import positions_topic

STREAM = StreamState(
    source="main",
    instance="a",
    slot="headrace_main",
    system_identifier="7",
    commit_lsn=Lsn(100),
    ordinal=3,
    confirmed_lsn=Lsn(120),
    ts_ms=1,
    unseen=(5, 6),
)
SNAPSHOT = SnapshotState(source="main", table="public.projects", topic="t", rows=10, chunks_done=1, chunks=2)


@pytest.fixture
def settings(bootstrap_servers: str, prefix: str) -> Settings:
    made = Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=bootstrap_servers))
    topics.ensure_topic(made.kafka, positions_topic(prefix), partitions=1, config=topics.STATE)
    return made


def record(
    settings: Settings, *records: tuple[bytes, StreamState | SnapshotState | HandoverState | StrayState | None]
) -> None:
    producer = clients.producer(settings.kafka)
    for key, state in records:
        value = None if state is None else state.model_dump_json().encode()
        producer.produce(positions_topic(settings.prefix), key=key, value=value)
    assert producer.flush(120) == 0


def test_topic_without_records_has_no_sources(settings: Settings) -> None:
    assert read_sources(settings) == {}
    assert read_sources(settings.model_copy(update={"prefix": f"{settings.prefix}x"})) == {}, "not even the topic"


def test_recorded_state_is_read_back(settings: Settings) -> None:
    table = record_key("main", "public.projects")
    record(settings, (record_key("main"), STREAM), (table, SNAPSHOT), (record_key("ci"), STREAM))
    assert read_sources(settings) == {
        "ci": SourceState(STREAM),
        "main": SourceState(STREAM, {"public.projects": SNAPSHOT}),
    }
    assert STREAM.position == Position(Lsn(100), 3)


def test_the_last_record_counts_and_a_tombstone_removes(settings: Settings) -> None:
    positions = Positions(settings.prefix, settings.kafka)
    table = record_key("main", "public.projects")
    record(settings, (record_key("main"), STREAM), (table, SNAPSHOT))
    assert positions.sources() == {"main": SourceState(STREAM, {"public.projects": SNAPSHOT})}
    later = STREAM.model_copy(update={"commit_lsn": Lsn(200)})
    record(settings, (record_key("main"), later), (table, None))
    assert positions.sources() == {"main": SourceState(later)}
    record(settings, (record_key("main"), None))
    assert positions.sources().get("main", SourceState()) == SourceState()


def test_fields_of_a_later_version_are_ignored(settings: Settings) -> None:
    producer = clients.producer(settings.kafka)
    value = STREAM.model_dump_json().encode().replace(b"{", b'{"from_the_future": 1, ', 1)
    producer.produce(positions_topic(settings.prefix), key=record_key("main"), value=value)
    producer.flush(120)
    assert read_sources(settings)["main"].stream == STREAM


def test_handover_has_a_separate_record(settings: Settings) -> None:
    given = HandoverState(
        source="main", gitlab_schema="gitlab_ci", owner="ci", epoch=2, commit_lsn=Lsn(7), ordinal=0,
        confirmed_lsn=Lsn(8), snapshots=(SNAPSHOT,),
    )  # fmt: skip
    positions = Positions(settings.prefix, settings.kafka)
    record(settings, (handover_key("main", "gitlab_ci"), given), (record_key("main"), STREAM))
    assert positions.sources() == {"main": SourceState(STREAM, {}, {"gitlab_ci": given})}
    record(settings, (handover_key("main", "gitlab_ci"), None))
    assert positions.sources() == {"main": SourceState(STREAM)}


def test_stray_writes_have_a_separate_record(settings: Settings) -> None:
    count = StrayState(source="main", table="public.t", gitlab_schema="gitlab_ci", since_ms=1, deletes=2, last_ms=3)
    positions = Positions(settings.prefix, settings.kafka)
    record(settings, (stray_key("main", "public.t"), count), (record_key("main"), STREAM))
    assert positions.sources() == {"main": SourceState(STREAM, strays={"public.t": count})}
    assert count.writes == 2
    record(settings, (stray_key("main", "public.t"), None))
    assert positions.sources() == {"main": SourceState(STREAM)}
