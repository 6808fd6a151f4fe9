"""`headrace check` finds what is wrong with a registry; headrace authenticates there in each way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

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
