"""The ACLs that `init` prints, on a broker with ACLs: each program can do its work, and none can do another's.

Each denied action is also tried with excess rights, so that a test that denies nothing is noticed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # exported, but not by name
from pydantic import SecretStr

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Cursor, Migration, Shared
from consumers.delivery.dead_letter_topic import read_dead_letters_topic
from consumers.delivery.group import Group
from consumers.ledger.progress import Place
from consumers.migrations.skip_resets import SkipResets
from consumers.operations import rights as consumer_rights
from consumers.operations.group_admin import members, move_offsets
from consumers.testing.waiting import until
from infra.kafka import clients, topics
from infra.kafka.denials import AccessDenied
from infra.rights import acls, kafka_rights
from infra.rights.acls import Acl, Kind, Operation
from infra.settings.model import DatabaseSettings, KafkaSettings, Settings
from producers.publish.kafka_transaction import Relay
from producers.source import rights as producer_rights
from schemas.events import ChangeEvent
from schemas.positions import Offset
from schemas.topics import dead_letters_topic, group_name, positions_topic, schemas_topic, table_topic
from tests.security.secured_kafka import SecuredKafka
from tests.shells import Shell

pytestmark = pytest.mark.stack

PRODUCER, MAIN, SHARED = "headrace-producer", "headrace-consumer-gitlab_main", "headrace-consumer-gitlab_shared"
SECONDS = 60.0


class SharedNotes(Migration):
    """A migration over a table that every database has."""

    name = "shared_notes"
    gitlab_schema = "gitlab_shared"
    tables = ("public.notes",)
    columns = ("id",)
    shared = Shared.PER_DATABASE

    def decide(self, event: ChangeEvent) -> Decision:
        return Skip(event.op.value)

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        return len(changes) if cursor.closed else 0

    def remaining(self, cursor: Cursor) -> int:
        return int(cursor.closed)


@dataclass(frozen=True)
class World:
    """A separate prefix on the secured broker, with topics that have a record each."""

    broker: SecuredKafka
    settings: Settings
    """The administrator's settings."""

    def as_user(self, user: str) -> Settings:
        return self.settings.model_copy(update={"kafka": self.broker.scram(user)})

    @property
    def table(self) -> str:
        return table_topic(self.settings.prefix, "gitlab_main", "main", "public", "container_repositories")

    @property
    def shared_table(self) -> str:
        return table_topic(self.settings.prefix, "gitlab_shared", "main", "public", "notes")

    @property
    def dead_letters(self) -> str:
        return dead_letters_topic(self.settings.prefix, "skip_resets")

    @property
    def group(self) -> str:
        return group_name(self.settings.prefix, "skip_resets")

    def granted(self) -> list[Acl]:
        """The ACLs that `init` prints for the producer of main and both migrations."""
        return [
            *producer_rights.acls(self.settings, "main"),
            *consumer_rights.acls(self.settings, SkipResets),
            *consumer_rights.acls(self.settings, SharedNotes),
        ]


@pytest.fixture
def world(secured_kafka: SecuredKafka, prefix: str) -> Iterator[World]:
    dsn = SecretStr("postgresql://nobody@127.0.0.1:1/none")
    section = DatabaseSettings(
        dsn=dsn, gitlab_schemas=("gitlab_main", "gitlab_shared"), tables=("public.container_repositories",)
    )
    settings = Settings(
        prefix=prefix,
        kafka=KafkaSettings(bootstrap_servers=secured_kafka.bootstrap_servers, replication_factor=1),
        databases={"main": section},
    )
    secured_kafka.add_users([PRODUCER, MAIN, SHARED])
    made = World(secured_kafka, settings)
    names = [made.table, made.shared_table, made.dead_letters, dead_letters_topic(prefix, "shared_notes")]
    names += [positions_topic(prefix), schemas_topic(prefix)]
    topics.ensure_topics(settings.kafka, names, partitions=1)
    producer = clients.producer(settings.kafka)
    for name in names:
        producer.produce(name, b"a row's values", key=f"main/{made.table}/0/0/1".encode())
    assert producer.flush(SECONDS) == 0
    move_offsets(settings.kafka, made.group, {Place(made.table, 0): Offset(0)})
    yield made
    secured_kafka.remove_acls()


def read_one(settings: KafkaSettings, topic: str) -> bytes | None:
    """Return the value of a topic's first record."""
    with clients.reading(settings) as client:
        assert topics.is_there(client.list_topics(topic, timeout=SECONDS).topics.get(topic))
        client.assign([TopicPartition(topic, 0, 0)])
        message = client.poll(SECONDS)
        assert message is not None
        if message.error() is not None:
            raise KafkaException(message.error())
        return message.value()


def write_one(settings: KafkaSettings, topic: str, value: bytes | None) -> None:
    """Write a record, or a tombstone, to a topic."""
    failures: list[KafkaError] = []
    producer = clients.producer(settings, message_timeout_ms=20_000)
    producer.produce(topic, value, key=b"k", on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(SECONDS) == 0
    for failure in failures:
        raise clients.translate(failure, settings)


def join(settings: KafkaSettings, group: str, topic: str) -> None:
    """Join a group, and leave it."""
    joined: list[object] = []
    client: Consumer = clients.consumer(settings, group)
    try:
        client.subscribe([topic], on_assign=lambda *_: joined.append(True))
        with clients.translated(settings):
            while not joined:
                message = client.poll(0.2)
                if message is not None and message.error() is not None:
                    raise KafkaException(message.error())
    finally:
        clients.leave(client, 10)


def administer(ask: Callable[[AdminClient], Mapping[Any, Future[Any]]]) -> Callable[[KafkaSettings], None]:
    def act(settings: KafkaSettings) -> None:
        with clients.translated(settings):
            client = clients.admin(settings)
            for future in ask(client).values():
                clients.answer(future, SECONDS)

    return act


def attacks(world: World) -> dict[str, Callable[[KafkaSettings], object]]:
    """Actions that a consumer of gitlab_shared must not be able to do."""
    return {
        "read a table": lambda user: read_one(user, world.table),
        "read its dead letters": lambda user: read_one(user, world.dead_letters),
        "write to a table": lambda user: write_one(user, world.table, b"planted"),
        "write to its own table": lambda user: write_one(user, world.shared_table, b"planted"),
        "write to the positions": lambda user: write_one(user, positions_topic(world.settings.prefix), b"planted"),
        "write a schema": lambda user: write_one(user, schemas_topic(world.settings.prefix), b"planted"),
        "remove a dead letter": lambda user: write_one(user, world.dead_letters, None),
        "look at a group": lambda user: members(user, world.group),
        "move a group": lambda user: move_offsets(user, world.group, {Place(world.shared_table, 0): Offset(1)}),
        "join a group": lambda user: join(user, world.group, world.shared_table),
        "open a producer's transactions": lambda user: Relay(user, f"{world.settings.prefix}.main", "none"),
        "delete a group": administer(lambda client: client.delete_consumer_groups([world.group])),
        "make a topic": administer(lambda client: client.create_topics([NewTopic(f"{world.table}x", 1, 1)])),
        "delete dead letters": administer(lambda client: client.delete_topics([world.dead_letters])),
        "delete a table": administer(lambda client: client.delete_topics([world.table])),
    }


TOO_MUCH = {
    Kind.TOPIC: (Operation.READ, Operation.WRITE, Operation.CREATE, Operation.DELETE, Operation.DESCRIBE),
    Kind.GROUP: (Operation.READ, Operation.DELETE, Operation.DESCRIBE),
    Kind.TRANSACTIONAL_ID: (Operation.WRITE, Operation.DESCRIBE),
}


@pytest.mark.long
def test_consumer_of_one_gitlab_schema_has_no_access_to_another(world: World) -> None:
    acls.apply(world.settings.kafka, world.granted())
    user = world.as_user(SHARED).kafka
    until(lambda: not kafka_rights.lacking(user, *needed(world, SharedNotes)), "the broker to have the ACLs")
    possible = []
    for name, attack in attacks(world).items():
        try:
            attack(user)
        except AccessDenied:
            continue
        possible.append(name)
    assert possible == []
    assert read_one(user, world.shared_table) == b"a row's values", "it can read its own table"
    join(user, group_name(world.settings.prefix, "shared_notes"), world.shared_table)
    write_one(user, dead_letters_topic(world.settings.prefix, "shared_notes"), b"a dead letter")


def test_documented_command_creates_the_acls(world: World, shell: Shell) -> None:
    """It is in docs/reference/security.md."""
    shell.write(
        f'prefix = "{world.settings.prefix}"\n[kafka]\nbootstrap_servers = "{world.broker.bootstrap_servers}"\n'
        '[databases.main]\ndsn = "postgresql://nobody@127.0.0.1:1/none"\n'
        'gitlab_schemas = ["gitlab_main", "gitlab_shared"]\ntables = ["public.container_repositories"]\n'
    )
    assert shell.run("init", "--acls", "--apply").code == 0
    user = world.as_user(PRODUCER).kafka
    until(lambda: not kafka_rights.lacking(user, *of_producer(world)), "the broker to have the ACLs")


def test_rights_to_the_whole_prefix_allow_every_attack(world: World) -> None:
    user = world.as_user(SHARED).kafka
    every = [
        Acl(f"User:{SHARED}", kind, f"{world.settings.prefix}.", wide, prefixed=True) for kind, wide in TOO_MUCH.items()
    ]
    acls.apply(world.settings.kafka, [*every, *world.granted()])
    until(lambda: not kafka_rights.lacking(user, every, [world.table]), "the broker to have the ACLs")
    for attack in attacks(world).values():
        attack(user)


def needed(world: World, kind: type[Migration]) -> kafka_rights.Needed:
    return consumer_rights.needed(world.settings, kind, "main")


def of_producer(world: World) -> kafka_rights.Needed:
    return list(producer_rights.acls(world.settings, "main")), [world.table, world.shared_table]


def test_each_missing_right_is_named(world: World) -> None:
    for user, (granted, names) in {MAIN: needed(world, SkipResets), PRODUCER: of_producer(world)}.items():
        own, client = list(granted), world.as_user(user).kafka
        for left_out in (*own, None):
            world.broker.remove_acls()
            acls.apply(world.settings.kafka, [acl for acl in own if acl != left_out])
            until_lacking(client, (own, names), [] if left_out is None else resources(left_out, names))


def resources(acl: Acl, names: Iterable[str]) -> list[str]:
    """Return what is missing without the ACL, by its kind and name."""
    if acl.kind is Kind.TRANSACTIONAL_ID:
        return [f"transactional id {acl.name}*"]
    covered = [name for name in names if acl.covers(name)] if acl.prefixed else [acl.name]
    return sorted(f"{acl.kind.value} {name}" for name in covered)


def until_lacking(client: KafkaSettings, wanted: kafka_rights.Needed, expected: list[str]) -> None:
    """Wait until exactly these resources are named: an ACL takes a moment to reach a broker."""
    until(
        lambda: sorted(str(each).rpartition(" on ")[2] for each in kafka_rights.lacking(client, *wanted)) == expected,
        f"the missing rights to be {expected}",
    )


def test_missing_operation_of_several_is_named(world: World) -> None:
    client = world.as_user(MAIN).kafka
    own, names = needed(world, SkipResets)
    reading = Acl(f"User:{MAIN}", Kind.TOPIC, world.dead_letters, (Operation.READ,))
    acls.apply(world.settings.kafka, [*[acl for acl in own if acl.name != world.dead_letters], reading])

    def until_only(operation: Operation) -> None:
        text = f"{operation.value} on topic {world.dead_letters}"
        until(lambda: kafka_rights.listed(kafka_rights.lacking(client, own, names)) == text, text)

    until_only(Operation.WRITE)
    world.broker.remove_acls(name=world.dead_letters)
    acls.apply(world.settings.kafka, [replace(reading, operations=(Operation.WRITE,))])
    until_only(Operation.READ)
    # For a topic that does not exist, only the right to create it is known.
    topics.delete_topics(world.settings.kafka, [world.dead_letters])
    until_only(Operation.CREATE)


def test_invisible_topic_is_not_mistaken_for_a_missing_one(world: World) -> None:
    """Kafka's list of topics omits both: a consumer waited forever, and no dead letter was reported."""
    acls.apply(world.settings.kafka, [Acl(f"User:{SHARED}", Kind.GROUP, "headrace-readers", (Operation.DESCRIBE,))])
    user = world.as_user(SHARED)
    for ask in (
        lambda: topics.end_offsets(user.kafka, world.table),
        lambda: topics.with_records(user.kafka, [world.table]),
        lambda: list(topics.LogReader(user.kafka, positions_topic(user.prefix)).read()),
        lambda: read_dead_letters_topic(user, "skip_resets"),
        lambda: topics.ensure_topic(user.kafka, world.table),
        lambda: topics.delete_topics(user.kafka, [world.table]),
        lambda: missing(user.kafka, world),
    ):
        with pytest.raises(AccessDenied, match=f"denies User:{SHARED} a topic"):
            ask()
    acls.apply(world.settings.kafka, consumer_rights.acls(world.settings, SkipResets))
    allowed = world.as_user(MAIN).kafka
    until(lambda: not kafka_rights.lacking(allowed, *needed(world, SkipResets)), "the broker to have the ACLs")
    assert missing(allowed, world) == []
    assert missing(allowed, world, f"{world.table}_later") == [f"{world.table}_later"]
    assert topics.end_offsets(allowed, world.table) == {0: 1}


def missing(settings: KafkaSettings, world: World, name: str | None = None) -> list[str]:
    """Return what a consumer would wait for."""
    group = Group(settings, world.group, assigned=lambda _: {}, stopping=threading.Event())
    try:
        return group.missing([name or world.table])
    finally:
        group.close()


def test_denial_names_principal_operation_and_resource(world: World) -> None:
    user = world.as_user(MAIN).kafka
    acls.apply(
        world.settings.kafka,
        [acl for acl in consumer_rights.acls(world.settings, SkipResets) if acl.kind is not Kind.GROUP],
    )
    with pytest.raises(AccessDenied) as caught, kafka_rights.named(user, lambda: needed(world, SkipResets)):
        join(user, world.group, world.table)
    assert str(caught.value) == (
        f"Kafka at {user.bootstrap_servers} denies User:{MAIN} what it needs: Read, Describe on group {world.group};"
        " Describe on group headrace-readers;"
        " Grant it: `headrace init --sql` prints the ACL commands, `headrace check` lists all that is missing."
    )


def test_first_denial_is_kept_if_no_right_is_missing_any_more(world: World) -> None:
    acls.apply(world.settings.kafka, world.granted())
    user = world.as_user(MAIN).kafka
    until(lambda: not kafka_rights.lacking(user, *needed(world, SkipResets)), "the broker to have the ACLs")
    with pytest.raises(AccessDenied, match="lately"), kafka_rights.named(user, lambda: needed(world, SkipResets)):
        raise AccessDenied("lately")


def test_only_an_administrator_can_create_acls(world: World) -> None:
    with pytest.raises(acls.AclsRefused, match="creates no ACLs for this client"):
        acls.apply(world.as_user(MAIN).kafka, world.granted())
