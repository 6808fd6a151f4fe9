"""A producer on three brokers: what it does while some of them are dead or hang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from structlog.testing import capture_logs

from infra.stack.kafka import EmbeddedKafka
from tests.clusters import cluster, transaction_coordinator
from tests.conftest import Database
from tests.producers.processes import SCHEMA
from tests.producers.sources import Source, running, settings_for, until

pytestmark = pytest.mark.stack

ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 40) i; CREATE TABLE u (id int PRIMARY KEY)"
_SESSION = {"broker.session.timeout.ms": "5000"}
"""Long enough that a start has to live through it: until then the others take a broker that died for alive."""


@pytest.fixture(scope="module")
def brokers() -> Iterator[EmbeddedKafka]:
    with cluster(settings=_SESSION) as running:
        yield running


@pytest.fixture
def source(brokers: EmbeddedKafka, prefix: str, database: Database) -> Source:
    connection = database.connect()
    connection.execute(f"{SCHEMA}; {ROWS}".encode())
    return Source(settings_for(brokers.bootstrap_servers, prefix, database.dsn, "public.t", "public.u"), connection)


def test_it_starts_right_behind_the_death_of_a_broker_and_outlives_its_coordinators(
    brokers: EmbeddedKafka, source: Source
) -> None:
    """At the start its topics are still to be made."""
    brokers.brokers[2].kill()
    with running(source) as producer:
        producer.caught_up()
        brokers.brokers[2].start()
        number = transaction_coordinator(brokers, f"{source.settings.prefix}.main")
        assert number is not None
        brokers.brokers[number].kill()
        source.connection.execute("UPDATE t SET n = n + 1")
        producer.caught_up()
    brokers.brokers[number].start()
    source.require_equal("public.t")


def test_a_stall_is_told_while_it_lasts(brokers: EmbeddedKafka, source: Source) -> None:
    with capture_logs() as told, running(source) as producer:
        producer.caught_up()
        for number in (1, 2):
            brokers.brokers[number].freeze()
        try:
            source.connection.execute("UPDATE t SET n = n + 1")
            until(lambda: ("waiting for Kafka", "commit a transaction") in events(told), "the stall to be told")
        finally:
            for number in (1, 2):
                brokers.brokers[number].thaw()
        producer.caught_up()
    assert ("Kafka kept the producer waiting", "commit a transaction") in events(told)
    source.require_equal("public.t")


def events(told: Sequence[Mapping[str, object]]) -> list[tuple[object, object]]:
    return [(each["event"], each.get("to")) for each in told]
