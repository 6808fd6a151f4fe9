"""OAUTHBEARER on a real broker, with its own validator of unsigned JWTs: clients of every kind log in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # exported, but not by name

from consumers.testing.waiting import until
from infra.kafka import clients
from infra.settings.model import KafkaSettings
from infra.stack.brokers.broker_settings import SETTINGS
from infra.stack.brokers.cluster import EmbeddedKafka
from infra.stack.processes.keeper import Keeper
from infra.stack.processes.ports import free_port

pytestmark = pytest.mark.stack

PROTOCOLS = "listener.security.protocol.map"
PRINTS = """
import base64, json, sys, time
open(sys.argv[1], "a").write("x")
now = int(time.time())
parts = {"alg": "none"}, {"sub": "headrace", "iat": now, "exp": now + int(sys.argv[2])}
print(".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + ".")
"""


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which a broker takes tokens."""
    keeper, place = Keeper(), f"127.0.0.1:{free_port()}"
    settings = {
        "listeners": f"OAUTH://{place}",
        "advertised.listeners": f"OAUTH://{place}",
        PROTOCOLS: f"{SETTINGS[PROTOCOLS]},OAUTH:SASL_PLAINTEXT",
        "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.oauth.oauthbearer.sasl.jaas.config": (
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;"
        ),
        # It ends a connection whose token expired, unless the client sent a new one before.
        "listener.name.oauth.oauthbearer.connections.max.reauth.ms": "3600000",
    }
    kafka = EmbeddedKafka(tmp_path_factory.mktemp("oauth"), keeper, settings=settings)
    kafka.start()
    yield place
    kafka.kill()
    keeper.close()


@pytest.mark.long
def test_producer_consumer_and_admin_client_log_in_and_renew_the_token(listener: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    settings = KafkaSettings(
        bootstrap_servers=listener,
        oauth_token_command=(sys.executable, "-c", PRINTS, str(runs), "20"),
        options={"security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "OAUTHBEARER"},
    )
    clients.ensure_reachable(settings, timeout=30)
    assert runs.read_text() == "x"
    admin = clients.admin(settings)
    admin.create_topics([NewTopic("events", num_partitions=1)])["events"].result(60)
    producer = clients.producer(settings, transactional_id="oauth")
    producer.init_transactions(60)
    with clients.reading(settings) as consumer:
        consumer.subscribe(["events"])

        def publish() -> None:
            producer.begin_transaction()
            producer.produce("events", b"x")
            producer.commit_transaction(60)

        def read() -> bool:
            record = consumer.poll(0.5)
            return record is not None and record.error() is None

        def renewed() -> bool:
            """Whether the command ran twice more; the clients renew their tokens while they are polled."""
            producer.poll(0.1)
            consumer.poll(0.1)
            return len(runs.read_text()) > 2

        publish()
        until(read, "the record")
        until(renewed, "new tokens")
        publish()
        until(read, "the record after it")
