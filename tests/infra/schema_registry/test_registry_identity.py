"""The same registry at another address continues; another registry at the same address is noticed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from infra.schema_registry.registry_identity import (
    RegistryChanged,
    changed_topics,
    fingerprint,
    noted,
    without_credentials,
)
from infra.schema_registry.url_registry import UrlRegistry
from infra.settings.model import Settings
from infra.settings.registry_settings import RegistrySettings
from schemas.avro import key_schema, value_schema
from schemas.errors import HeadraceError, Unavailable
from schemas.events import Column, Relation
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server

TOPIC = "p.gitlab_main.projects"
COLUMNS = (Column("id", 20), Column("total", 1700, 655366), Column("with space", 25), Column("at", 1184))
RELATION = Relation(1, "public", "projects", "d", COLUMNS, ("id",))
KEY, VALUE = key_schema(RELATION, "gitlab_main", ("id",)), value_schema(RELATION, "gitlab_main")
OTHER = value_schema(Relation(1, "public", "projects", "d", COLUMNS[:2], ("id",)), "gitlab_main")


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        yield running


def registered(server: RegistryServer, *schemas: dict[str, Any]) -> dict[int, str]:
    registry = UrlRegistry(RegistrySettings(url=server.url))
    ids = {registry.register(f"{TOPIC}-{place}", each): fingerprint(each) for place, each in enumerate(schemas)}
    assert len(ids) == len(schemas)
    return ids


def problems(url: str, *records: dict[int, str]) -> list[str]:
    settings = Settings(registry=RegistrySettings(url=url))
    return [each.problem for each in changed_topics(settings, UrlRegistry(settings.registry), {TOPIC: records})]


def test_same_registry_at_another_address_is_the_same(server: RegistryServer) -> None:
    recorded = registered(server, KEY, VALUE)
    assert problems(server.url, recorded) == []
    assert problems(server.url.replace("127.0.0.1", "localhost"), recorded) == []


def test_registry_that_lost_its_schemas_is_refused(server: RegistryServer) -> None:
    recorded = registered(server, KEY, VALUE)
    server.schemas.clear()
    server.subjects.clear()
    assert problems(server.url, recorded) == [
        f"topic {TOPIC} has records with schema id 1, which the registry at {server.url} does not know"
    ]


def test_registry_restored_from_an_older_backup_is_refused(server: RegistryServer) -> None:
    recorded = registered(server, KEY, OTHER, VALUE)
    del server.schemas[2:]
    assert "schema id 3, which the registry at" in problems(server.url, recorded)[0]


def test_registry_with_other_schemas_by_the_same_ids_is_refused(server: RegistryServer) -> None:
    recorded = registered(server, KEY, VALUE)
    with registry_server() as another:
        registered(another, KEY, OTHER, VALUE)
        assert problems(another.url, recorded) == [
            f"topic {TOPIC} has records with schema id 2, which is another schema in the registry at {another.url}"
        ]


def test_copy_of_a_registry_with_its_ids_is_the_same(server: RegistryServer) -> None:
    recorded = registered(server, KEY, VALUE)
    with registry_server() as copy:
        copy.schemas = [*server.schemas, json.dumps({"type": "string"})]
        assert problems(copy.url, recorded) == []


def test_topic_is_right_if_its_newest_record_is(server: RegistryServer) -> None:
    recorded = registered(server, KEY, VALUE)
    assert problems(server.url, {1: fingerprint(OTHER)}, recorded) == []
    assert len(problems(server.url, {1: fingerprint(OTHER)}, {7: fingerprint(KEY)})) == 1


def test_error_says_what_to_do_and_exits_with_3() -> None:
    error = RegistryChanged("topic t has records with schema id 7")
    assert error.exit_code == 3
    assert "Set registry.url to the registry that has its schemas, or restore that registry" in str(error)


def test_server_that_answers_everything_with_404_is_no_changed_registry(server: RegistryServer) -> None:
    recorded = registered(server, KEY, VALUE)
    with pytest.raises(HeadraceError) as caught:
        problems(f"{server.url}/elsewhere", recorded)
    assert not isinstance(caught.value, RegistryChanged)


def test_registry_that_does_not_answer_is_no_changed_registry() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable):
            problems(f"http://127.0.0.1:{held.getsockname()[1]}", {1: "0"})


@pytest.mark.parametrize("text", ["", "no JSON", "null", "7", "[" * 100_000, '{"type": {"type": []}}'])
def test_whatever_a_registry_answers_is_another_schema(server: RegistryServer, text: str) -> None:
    recorded = registered(server, KEY)
    server.schemas[0] = text
    assert "schema id 1, which is another schema in" in problems(server.url, recorded)[0]


def as_registries_print(schema: Any) -> Any:
    """Return a schema as a registry may print it: with documentation, full names and types spelt out."""
    if isinstance(schema, list):
        return [as_registries_print(each) for each in schema]
    if schema == "Row":
        return "headrace.gitlab_main.projects.Row"
    if isinstance(schema, str):
        return {"type": schema}
    changed = {name: schema[name] for name in sorted(schema, reverse=True)}
    if "fields" in schema:
        changed["fields"] = [
            {"doc": "", **each, "type": as_registries_print(each["type"])} for each in schema["fields"]
        ]
        changed |= {"namespace": "headrace.gitlab_main.projects", "aliases": ["x"]}
    elif isinstance(schema["type"], str):
        return changed
    return changed


def test_fingerprint_survives_another_text_of_the_schema() -> None:
    for schema in (KEY, VALUE):
        printed = as_registries_print(schema)
        assert json.dumps(printed, sort_keys=True) != json.dumps(schema, sort_keys=True)
        assert fingerprint(printed) == fingerprint(schema)


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ('"scale": 2', '"scale": 3'),
        ('"precision": 10', '"precision": 11'),
        ("timestamp-micros", "local-timestamp-micros"),
        ('"headrace.column": "with space"', '"headrace.column": "with_space"'),
        ('"name": "total"', '"name": "sum"'),
        ("headrace.gitlab_main.projects", "headrace.gitlab_main.issues"),
        ('"headrace.format": 2', '"headrace.format": 3'),
    ],
)
def test_fingerprint_differs_if_records_would_decode_differently(what: str, instead: str) -> None:
    text = json.dumps(VALUE)
    assert what in text
    assert fingerprint(json.loads(text.replace(what, instead))) != fingerprint(VALUE)


def test_id_that_the_topic_has_for_another_schema_is_refused() -> None:
    recorded = noted({}, {1: KEY, 2: VALUE}, "table public.projects")
    assert noted(recorded, {2: VALUE}, "table public.projects") is recorded
    assert noted(recorded, {3: OTHER}, "table public.projects") == {**recorded, 3: fingerprint(OTHER)}
    with pytest.raises(RegistryChanged, match=r"gave table public\.projects schema id 2, which its topic has for anot"):
        noted(recorded, {2: OTHER}, "table public.projects")


@pytest.mark.parametrize(
    ("urls", "shown"),
    [
        ("https://registry.example/a@b", "https://b"),
        ("https://me:s3cret@registry.example/path", "https://registry.example/path"),
        ("https://me:s3/cr,et@r1.example, http://me:s3cret@r2.example", "https://r1.example, http://r2.example"),
    ],
)
def test_no_url_is_shown_with_its_credentials(urls: str, shown: str) -> None:
    assert without_credentials(urls) == shown
