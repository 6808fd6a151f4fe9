"""The stack in containers: its configuration here; the rest where a Docker engine answers."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from infra.stack import container_stack
from infra.stack.containers import kafka_environment, postgres_command
from schemas.errors import Unavailable

# docker-py leaves the socket of a failed connection to the collector, which warns
leaves_a_socket = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collected() -> Iterator[None]:
    """Have the collector run while the warning is still this test's own."""
    yield
    gc.collect()


def test_kafka_environment_spells_the_image_s_way() -> None:
    environment = kafka_environment("docker-host:20001")
    assert environment["KAFKA_TRANSACTION_STATE_LOG_MIN_ISR"] == "1"
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://docker-host:20001,BROKER://localhost:29092"
    assert all(name.replace("_", "").isalnum() and name.isupper() for name in environment)


def test_every_kafka_listener_has_a_protocol() -> None:
    environment = kafka_environment("docker-host:20001")
    protocols = {pair.split(":")[0] for pair in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    listeners = {listener.split(":")[0] for listener in environment["KAFKA_LISTENERS"].split(",")}
    assert protocols == listeners


def test_postgres_gets_the_embedded_server_s_settings() -> None:
    assert "wal_level=logical" in postgres_command()


@leaves_a_socket
def test_no_engine_is_one_line(monkeypatch: pytest.MonkeyPatch, collected: None) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(Unavailable, match="no Docker engine answers") as caught:
        container_stack()
    assert "\n" not in str(caught.value)


@leaves_a_socket
@pytest.mark.stack
def test_containers_keep_their_data_when_killed(collected: None) -> None:
    try:
        stack = container_stack()
    except Unavailable as error:
        pytest.skip(str(error))
    with stack:
        before = stack.endpoints
        stack.postgres.create_database("kept")
        stack.kafka.kill()
        stack.postgres.kill()
        stack.kafka.start()
        stack.postgres.start()
        assert stack.endpoints == before
        stack.postgres.connect("kept").close()
