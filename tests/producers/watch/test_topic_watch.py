"""Topics created beforehand or given more partitions: accepted, or reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, but not by name
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from consumers.testing.waiting import until
from infra.kafka import clients
from infra.kafka.topic_configurations import TopicConfigurations
from infra.kafka.topic_requirements import TopicUnfit, forgetful
from infra.postgres.connect import connect
from infra.state.positions import Positions
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.check import hindrances
from producers.session.resnapshot_request import ask
from producers.source.preflight import Finding
from schemas.topics import positions_topic, schemas_topic
from tests.producers.folding import states
from tests.producers.processes import SCHEMA
from tests.producers.sources import Source, copy_all, running, topic_of

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 40) i; CREATE TABLE u (id int PRIMARY KEY)"


def make(source: Source, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
    client = clients.admin(source.settings.kafka)
    client.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result(180)


def add_partitions(source: Source, name: str, partitions: int) -> None:
    client = clients.admin(source.settings.kafka)
    client.create_partitions([NewPartitions(name, partitions)])[name].result(180)


def alter(source: Source, name: str, **config: str) -> None:
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
    client = clients.admin(source.settings.kafka)
    client.incremental_alter_configs([resource])[resource].result(180)
    wanted = {entry.name: entry.value for entry in entries}
    asked = ConfigResource(ResourceType.TOPIC, name)

    def shown() -> bool:
        found = client.describe_configs([asked])[asked].result(180)
        return {key: found[key].value for key in wanted} == wanted

    # The broker that answers learns of a change a moment after the controller has confirmed it.
    until(shown, f"the configuration of {name}")


def checked(source: Source) -> list[Finding]:
    dsn = source.settings.database("main").dsn.get_secret_value()
    with connect(dsn, name="test") as connection:
        return hindrances(connection, source.settings, "main", Positions(source.settings.prefix, source.settings.kafka))


def test_state_topics_may_have_many_partitions(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", "public.u")
    for name in (positions_topic(source.settings.prefix), schemas_topic(source.settings.prefix)):
        make(source, name, 6, {"cleanup.policy": "compact"})
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("ALTER TABLE u ADD more text; INSERT INTO u VALUES (1, 'x')")
        producer.caught_up()
    source.connection.execute("UPDATE t SET n = n + 1 WHERE id < 10; INSERT INTO u VALUES (2)")
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": 40, "u": 9}
    assert states(source.require_equal("public.u")) == {"c": 2}
    assert checked(source) == []


def test_topic_that_loses_records_is_reported_by_check_and_start(new_source: NewSource) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", "public.u")
    topic, positions = topic_of(source.settings, "public.t"), positions_topic(source.settings.prefix)
    make(source, topic, 3, {"cleanup.policy": "compact,delete"})
    make(source, positions, 1, {"cleanup.policy": "compact", "max.message.bytes": "100000"})
    refusals = (
        rf"topic {topic} deletes records .*\(cleanup\.policy=compact,delete\)",
        rf"topic {positions} accepts records of 100000 bytes",
    )
    for problem, change in zip(
        refusals, ({"cleanup_policy": "compact"}, {"max_message_bytes": "2000000"}), strict=True
    ):
        with pytest.raises(TopicUnfit, match=rf"{problem}.*kafka-configs\.sh --alter"):
            copy_all(source)
        name = topic if "cleanup_policy" in change else positions
        assert [finding for finding in checked(source) if f"topic {name} " in finding.problem]
        alter(source, name, **change)
    copy_all(source)
    source.require_equal("public.t")
    assert checked(source) == []
    alter(source, topic, delete_retention_ms="60000")
    ((told, remedy),) = forgetful(TopicConfigurations(source.settings.kafka), [topic])
    assert f"topic {topic} drops a delete 60 s after" in told
    assert "delete.retention.ms=86400000" in remedy


@pytest.mark.long
@pytest.mark.parametrize("stopped", [False, True])
def test_table_whose_topic_got_partitions_is_stopped_until_resnapshot(new_source: NewSource, stopped: bool) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", "public.u")
    topic = topic_of(source.settings, "public.t")

    def reason() -> str:
        return source.state().snapshots["public.t"].stopped or ""

    if stopped:
        copy_all(source)
        add_partitions(source, topic, 5)
        assert any(f"topic {topic} has 5 partitions" in finding.problem for finding in checked(source))
    with running(source) as producer:
        producer.caught_up()
        if not stopped:
            add_partitions(source, topic, 5)
        until(lambda: bool(reason()), "the table to be stopped")
        assert f"topic {topic} has 5 partitions, but the table's keys are spread over 2" in reason()
        source.connection.execute("UPDATE t SET v = 'second'; DELETE FROM t WHERE id > 30; INSERT INTO u VALUES (1)")
        producer.caught_up()
        ask(source.settings, "main", SnapshotRequest(table="public.t", from_scratch=True))
        until(lambda: not reason(), "the re-snapshot")
        producer.caught_up()
        source.connection.execute("UPDATE t SET v = 'third' WHERE id < 10; INSERT INTO t VALUES (99, 0, 'v')")
        producer.caught_up()
    records = source.require_equal("public.t")
    assert {record.partition for record in records if record.op == "t"} == set(range(5))
    source.require_equal("public.u")
    assert checked(source) == []
