"""`headrace check` finds what is wrong with a registry; headrace authenticates there in each way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from pydantic import SecretStr

from consumers.testing.waiting import until
from infra.schema_registry.url_registry import UrlRegistry
from infra.settings.registry_settings import RegistrySettings
from schemas.errors import HeadraceError
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server

SECRET = "s3cret-of-the-test"
SCHEMA: dict[str, Any] = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        yield running


def registry(server: RegistryServer, **settings: Any) -> UrlRegistry:
    return UrlRegistry(RegistrySettings(url=server.url, **settings))


def test_all_requests_of_a_registry_share_a_connection_until_it_is_closed(server: RegistryServer) -> None:
    with closing(registry(server)) as kept:
        number = kept.register("t-value", SCHEMA)
        assert [kept.schema(number), kept.known([number, 4711])] == [SCHEMA, {number: SCHEMA}]
        assert (server.connections, server.disconnections) == (1, 0)
    until(lambda: server.disconnections == 1, "the connection is closed")
    kept.close()
    assert kept.schema(number) == SCHEMA, "on a new one"
    assert server.connections == 2
    kept.close()


def test_registry_that_is_no_longer_used_closes_its_connection(server: RegistryServer) -> None:
    registry(server).register("t-value", SCHEMA)
    gc.collect()
    until(lambda: server.disconnections == 1, "the connection is closed")


def test_threads_that_share_a_registry_ask_one_after_the_other(server: RegistryServer) -> None:
    subjects = [f"t{number}-value" for number in range(64)]
    schemas = [{**SCHEMA, "name": f"Key{number}"} for number in range(64)]
    with closing(registry(server)) as shared, ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(shared.register, subjects, schemas))
        assert list(pool.map(shared.schema, numbers)) == schemas
    assert server.connections == 1
    assert {name: len(ids) for name, ids in server.subjects.items()} == dict.fromkeys(subjects, 1)


def test_answers_are_the_registry_s_own_each_time(server: RegistryServer) -> None:
    with closing(registry(server)) as kept:
        number = kept.register("t-value", SCHEMA)
        assert kept.known([number]) == {number: SCHEMA}
        server.schemas.clear()
        assert kept.known([number]) == {}, "it was replaced"


def test_older_schema_after_an_emptied_topic_is_registered_again(server: RegistryServer) -> None:
    with closing(registry(server)) as kept:
        numbers = [kept.register("t-value", SCHEMA)]
        kept.forget("t-value")
        numbers.append(kept.register("t-value", {**SCHEMA, "name": "Other"}))
        kept.forget("t-value")
        assert kept.register("t-value", SCHEMA) == numbers[0]
    assert server.subjects == {"t-value": numbers[:1]}


def test_check_changes_nothing_in_a_registry_that_would_register(server: RegistryServer) -> None:
    registry(server).register("t-value", SCHEMA)
    before = list(server.schemas), {name: list(ids) for name, ids in server.subjects.items()}
    registry(server).ensure_registers(["s-value", "t-value", "u-value"])
    assert (server.schemas, server.subjects) == before
    assert server.asked[-1] == "POST /subjects/t-value/versions"


def test_check_finds_a_read_only_registry(server: RegistryServer) -> None:
    server.mode = "READONLY"
    with pytest.raises(HeadraceError, match=f"the registry at {server.url} is in mode READONLY and registers no schem"):
        registry(server).ensure_registers([])


def test_check_finds_a_registry_that_denies_registering(server: RegistryServer) -> None:
    registry(server).register("t-value", SCHEMA)
    server.read_only = True
    with pytest.raises(HeadraceError, match="denies registering schemas of t-value: User is denied operation Write"):
        registry(server).ensure_registers(["t-value"])


def test_registry_without_modes_is_no_finding(server: RegistryServer) -> None:
    server.mode = {}  # type: ignore[assignment]  # not one of a registry
    registry(server).ensure_registers(["t-value"])


def test_known_asks_for_all_ids_and_leaves_out_unknown_ones(server: RegistryServer) -> None:
    number = registry(server).register("t-value", SCHEMA)
    assert registry(server).known([number, 4711]) == {number: SCHEMA}


def test_bearer_token_is_sent_and_never_shown(server: RegistryServer) -> None:
    server.token = SECRET
    assert registry(server, token=SecretStr(SECRET)).register("t-value", SCHEMA) == 1
    with pytest.raises(HeadraceError, match="Unauthorized") as caught:
        registry(server, token=SecretStr(f"{SECRET}-2")).ensure_answers()
    assert SECRET not in str(caught.value)
