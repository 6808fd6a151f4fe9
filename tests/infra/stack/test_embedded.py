"""The embedded stack serves, keeps its data over restarts, and leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported, not declared

from infra.stack import EmbeddedStack, Stack, embedded, embedded_stack

pytestmark = pytest.mark.stack


def create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for done in admin.create_topics([NewTopic(topic, 1, 1)]).values():
        done.result(120)


def produce_committed(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": topic})
    producer.init_transactions(120)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value)
    producer.commit_transaction(120)


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [value for message in consumer.consume(count, 120) if (value := message.value()) is not None]
    finally:
        consumer.close()


def test_serves_transactions_and_consumers(stack: Stack, prefix: str) -> None:
    bootstrap = stack.endpoints.bootstrap_servers
    create_topic(bootstrap, f"{prefix}.serves")
    produce_committed(bootstrap, f"{prefix}.serves", [b"a", b"b"])
    assert read(bootstrap, f"{prefix}.serves", 2) == [b"a", b"b"]


def test_topics_are_never_created_by_accident(stack: Stack, prefix: str) -> None:
    producer = Producer({"bootstrap.servers": stack.endpoints.bootstrap_servers, "message.timeout.ms": 1000})
    errors = []
    producer.produce(f"{prefix}.nowhere", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(120)
    assert len(errors) == 1
    assert errors[0] is not None


def test_postgres_is_ready_for_logical_replication(stack: Stack) -> None:
    with stack.postgres.connect() as connection:
        settings = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()
            for name in ("wal_level", "max_replication_slots", "max_slot_wal_keep_size")
        }
    assert settings == {
        "wal_level": ("logical",),
        "max_replication_slots": ("20",),
        "max_slot_wal_keep_size": ("4GB",),
    }


def test_postgres_refuses_logins_without_the_password(stack: Stack) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(stack.endpoints.dsn)
    wrong = psycopg.conninfo.make_conninfo("", **{**parts, "password": "guessed"})
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong, connect_timeout=120)


def test_endpoints_hide_the_password(stack: Stack) -> None:
    password = str(psycopg.conninfo.conninfo_to_dict(stack.endpoints.dsn)["password"])
    assert password not in repr(stack.endpoints)


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    """A stack to crash."""
    with embedded_stack() as running:
        yield running


Down = Callable[[EmbeddedStack], None]


def stop_both(stack: EmbeddedStack) -> None:
    stack.kafka.stop()
    stack.postgres.stop()


def kill_both(stack: EmbeddedStack) -> None:
    stack.kafka.kill()
    stack.postgres.kill()


@pytest.mark.long
@pytest.mark.parametrize("down", [stop_both, kill_both])
def test_data_and_ports_survive(own: EmbeddedStack, prefix: str, down: Down) -> None:
    before = own.endpoints
    create_topic(before.bootstrap_servers, f"{prefix}.kept")
    produce_committed(before.bootstrap_servers, f"{prefix}.kept", [b"kept"])
    own.postgres.create_database(prefix)
    with own.postgres.connect(prefix) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")

    down(own)
    assert not own.kafka.running
    assert not own.postgres.running
    own.start()

    assert own.endpoints == before
    assert read(before.bootstrap_servers, f"{prefix}.kept", 1) == [b"kept"]
    with own.postgres.connect(prefix) as connection:
        assert connection.execute("SELECT x FROM kept").fetchall() == [(1,)]


def test_killing_postgres_leaves_no_backend(own: EmbeddedStack) -> None:
    with own.postgres.connect() as connection:
        children = own.postgres.process.children()
        assert children
        own.postgres.kill()
        assert not any(child.is_running() for child in children)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    own.postgres.start()


def test_close_leaves_nothing_and_may_be_called_twice() -> None:
    running = embedded_stack()
    processes = [running.kafka.brokers[1].process.identity, running.postgres.process.identity]
    running.close()
    running.close()
    assert not running.directory.exists()
    assert not any(process.find() for process in processes)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="only Linux lists its shared memory as a file")
def test_a_killed_database_leaves_no_shared_memory() -> None:
    with embedded_stack() as running:
        segment = (running.postgres.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in shared_memory()
        running.postgres.kill()
    assert segment not in shared_memory()


def shared_memory() -> set[str]:
    """Return the ids of the machine's shared memory segments."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such directory")
@pytest.mark.parametrize(("needed", "there", "chosen"), [(1, True, True), (1 << 60, True, False), (1, False, False)])
def test_data_that_need_not_survive_the_machine_is_in_memory_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needed: int, there: bool, chosen: bool
) -> None:
    memory = tmp_path if there else tmp_path / "nowhere"
    monkeypatch.setattr(embedded, "_MEMORY", memory)
    monkeypatch.setattr(embedded, "_MEMORY_BYTES_NEEDED", needed)
    assert embedded._memory_directory() == (memory if chosen else None)
