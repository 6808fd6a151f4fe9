"""Both kinds of registry keep the same contract; each has faults of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr

from infra.kafka import topics
from infra.schema_registry.topic_registry import (
    IncompatibleSchema,
    Registry,
    TopicRegistry,
    UnknownSchema,
    open_registry,
)
from infra.schema_registry.url_registry import UrlRegistry
from infra.settings.model import KafkaSettings, Settings
from infra.settings.registry_settings import RegistrySettings
from schemas.avro import key_schema, value_schema
from schemas.errors import HeadraceError, Unavailable
from schemas.events import Column, Relation
from schemas.topics import schemas_topic
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server

INT, BIGINT, TEXT = 23, 20, 25
SECRET = "s3cret-of-the-test"
Open = Callable[[], Registry]


def relation(*columns: Column) -> Relation:
    return Relation(1, "public", "projects", "d", columns, ("id",))


def value(*columns: Column) -> dict[str, Any]:
    return value_schema(relation(Column("id", BIGINT), *columns), "gitlab_main")


NAMED = value(Column("name", TEXT))
GROWN = value(Column("name", TEXT), Column("stars", INT))
WIDER = value(Column("name", TEXT), Column("stars", BIGINT))
RETYPED = value(Column("name", INT))


@pytest.fixture
def settings(bootstrap_servers: str, prefix: str) -> Settings:
    return Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=bootstrap_servers))


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        yield running


@pytest.fixture(params=["topic", "url"])
def fresh(request: pytest.FixtureRequest) -> Open:
    """A function that opens the same registry again, as another process would."""
    if request.param == "topic":
        settings: Settings = request.getfixturevalue("settings")
    else:
        url = request.getfixturevalue("server").url
        settings = Settings(registry=RegistrySettings(url=url))
    return lambda: open_registry(settings)


def test_id_is_stable_and_returns_the_schema(fresh: Open) -> None:
    registry = fresh()
    number = registry.register("t-value", NAMED)
    assert registry.register("t-value", NAMED) == number
    other = fresh()
    assert other.schema(number) == NAMED
    assert other.register("t-value", NAMED) == number


def test_new_column_keeps_old_ids_valid(fresh: Open) -> None:
    registry = fresh()
    numbers = [registry.register("t-value", each) for each in (NAMED, GROWN, WIDER)]
    assert len(set(numbers)) == 3
    assert [fresh().schema(number) for number in numbers] == [NAMED, GROWN, WIDER]


def test_an_incompatible_schema_is_refused_and_the_change_named(fresh: Open) -> None:
    number = fresh().register("t-value", NAMED)
    with pytest.raises(IncompatibleSchema) as caught:
        fresh().register("t-value", RETYPED)
    message = str(caught.value)
    assert "t-value changed incompatibly: column name: text → integer" in message
    assert "Revert the table" in message
    assert "headrace snapshot TABLE --from-scratch" in message
    assert caught.value.exit_code == 3
    assert fresh().register("t-value", NAMED) == number, "nothing was registered"
    fresh().register("other-value", RETYPED)


def test_schema_after_an_emptied_topic_may_be_incompatible(fresh: Open) -> None:
    number = fresh().register("t-value", NAMED)
    registry = fresh()
    registry.forget("t-value")
    other = registry.register("t-value", RETYPED)
    assert [fresh().schema(each) for each in (number, other)] == [NAMED, RETYPED]
    with pytest.raises(IncompatibleSchema):
        registry.register("t-value", GROWN)
    back = fresh()
    back.forget("t-value")
    assert back.register("t-value", NAMED) == number
    assert fresh().register("t-value", GROWN) not in (number, other), "it follows the one that came last"


def test_registry_with_its_own_compatibility_check_forgets_too(server: RegistryServer) -> None:
    registry = UrlRegistry(RegistrySettings(url=server.url))
    number = registry.register("t-value", NAMED)
    server.refusing = True
    registry.forget("t-value")
    assert registry.register("t-value", RETYPED) != number
    assert registry.schema(number) == NAMED


def test_a_key_may_not_change_at_all(fresh: Open) -> None:
    fresh().register("t-key", key_schema(relation(Column("id", INT)), "gitlab_main", ("id",)))
    with pytest.raises(IncompatibleSchema, match="key column id: integer → bigint"):
        fresh().register("t-key", key_schema(relation(Column("id", BIGINT)), "gitlab_main", ("id",)))


def test_an_unknown_id_is_named_with_the_place(fresh: Open) -> None:
    fresh().register("t-value", NAMED)
    with pytest.raises(
        UnknownSchema, match=r"schema id 4711 is not in .*; Check that producer and consumer use the same"
    ):
        fresh().schema(4711)


def test_many_registered_at_once_have_the_ids_that_each_gets_alone(fresh: Open) -> None:
    registry = fresh()
    before = registry.register("t-value", NAMED)
    registry.forget("u-value")
    registry.register_all([("t-value", GROWN), ("u-value", NAMED), ("w-value", GROWN)])
    registry.register_all([("t-value", GROWN), ("t-value", RETYPED)])
    with pytest.raises(IncompatibleSchema):
        registry.register("t-value", RETYPED)
    numbers = {
        subject: registry.register(subject, schema)
        for subject, schema in (("t-value", GROWN), ("u-value", NAMED), ("w-value", GROWN))
    }
    other = fresh()
    assert other.schema(before) == NAMED
    assert {name: other.schema(number) for name, number in numbers.items()} == {
        "t-value": GROWN,
        "u-value": NAMED,
        "w-value": GROWN,
    }
    assert other.register("t-value", GROWN) == numbers["t-value"]


def test_a_registry_sees_what_another_registers_later(fresh: Open) -> None:
    first, second = fresh(), fresh()
    first.register("t-value", NAMED)
    number = second.register("t-value", GROWN)
    assert first.schema(number) == GROWN
    assert first.register("t-value", GROWN) == number


def test_two_that_register_the_same_at_once_get_the_same_id(settings: Settings) -> None:
    # Both have read the topic before either writes: the race itself, not its likelihood.
    first, second = TopicRegistry(settings), TopicRegistry(settings)
    topics.ensure_topic(settings.kafka, schemas_topic(settings.prefix), partitions=1)
    texts = []
    for each in (first, second):
        each._catch_up()
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda registry: registry.register("t-value", NAMED), (first, second)))
    assert texts[0] == texts[1]
    for each in (first, second):
        each._append([("u-value", "{}")])
    for each in (first, second, TopicRegistry(settings)):
        each._catch_up()
        assert each._ids["u-value", "{}"] == min(n for n, schema in each._schemas.items() if schema == {})


def test_a_schemas_topic_that_is_not_there_knows_no_id(settings: Settings) -> None:
    with pytest.raises(UnknownSchema, match=f"schema id 1 is not in topic {schemas_topic(settings.prefix)}"):
        TopicRegistry(settings).schema(1)


def protected(server: RegistryServer, password: str) -> UrlRegistry:
    server.credentials = f"headrace:{SECRET}"
    return UrlRegistry(RegistrySettings(url=server.url, user="headrace", password=SecretStr(password)))


def test_credentials_are_sent(server: RegistryServer) -> None:
    assert protected(server, SECRET).register("t-value", NAMED) == 1


def test_wrong_credentials_are_reported_without_showing_them(server: RegistryServer) -> None:
    with pytest.raises(HeadraceError, match=f"registry at {server.url}: Unauthorized") as caught:
        protected(server, f"{SECRET}-2").register("t-value", NAMED)
    assert SECRET not in str(caught.value)


def test_credentials_in_the_url_are_not_shown(server: RegistryServer) -> None:
    server.credentials = f"headrace:{SECRET}-2"
    inside = server.url.replace("://", f"://headrace:{SECRET}@")
    with pytest.raises(HeadraceError, match=f"registry at {server.url}: Unauthorized") as caught:
        UrlRegistry(RegistrySettings(url=inside)).register("t-value", NAMED)
    assert SECRET not in str(caught.value)


def test_a_registry_that_fails_says_where_and_what(server: RegistryServer) -> None:
    registry = UrlRegistry(RegistrySettings(url=server.url))
    server.broken = True
    with pytest.raises(HeadraceError, match=f"registry at {server.url}: Error in the backend data store; see the reg"):
        registry.register("t-value", NAMED)
    server.broken = False
    assert registry.register("t-value", NAMED) == 1, "and it goes on when it is well again"


def test_a_registry_that_does_not_answer() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"registry at {url} does not answer: .*registry.url in the settings"):
            UrlRegistry(RegistrySettings(url=url)).schema(1)


def test_server_that_is_not_a_registry_is_reported(server: RegistryServer) -> None:
    with pytest.raises(HeadraceError, match=r"registry at .*/elsewhere: "):
        UrlRegistry(RegistrySettings(url=f"{server.url}/elsewhere")).register("t-value", NAMED)


def test_a_command_does_not_load_the_client_of_a_registry_before_it_needs_one() -> None:
    program = (
        "import producers.commands.source_findings, producers.session.service, sys;"
        " import consumers.commands.execution.membership;"
        " print('confluent_kafka.schema_registry' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
