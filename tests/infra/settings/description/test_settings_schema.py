"""The JSON schema of the settings file: every key with a description, as in the models and in the example file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import pytest
from pydantic import BaseModel, Field

from consumers.operations import catalog
from infra.settings.description.settings_schema import descriptions, json_schema
from infra.settings.kafka_options import YOURS
from infra.settings.model import MigrationSettings, Settings


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    settings = Settings.model_construct()
    return json_schema({name: kind.options_type for name, kind in catalog.migrations(settings).items()}, complete=True)


def described(document: Any, at: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every key of a schema with its own schema."""
    if isinstance(document, Mapping):
        for name, each in document.items():
            if name in ("properties", "patternProperties", "definitions"):
                for key, value in each.items():
                    if name == "properties":
                        yield f"{at}.{key}", value
                    yield from described(value, f"{at}.{key}")
            else:
                yield from described(each, at)


def test_every_key_has_a_description(schema: dict[str, Any]) -> None:
    found = dict(described(schema))
    assert [key for key, each in found.items() if not each.get("description")] == []
    assert {".format", ".kafka", ".DatabaseSettings.dsn", ".migrations.rehash_moves.tries"} <= found.keys()
    assert len(found) > 200


def test_section_has_the_keys_of_its_model_and_no_others(schema: dict[str, Any]) -> None:
    assert schema["properties"].keys() == {"format", *Settings.model_fields}
    moves = schema["properties"]["migrations"]["properties"]["rehash_moves"]
    options = {"direction", "moves_at_once", "tries", "retry_seconds", "clone_seconds"}
    assert moves["properties"].keys() == {*MigrationSettings.model_fields, *options}
    new = schema["properties"]["migrations"]["additionalProperties"]
    assert new["properties"].keys() == MigrationSettings.model_fields.keys()
    assert (new["required"], new["additionalProperties"]) == (["declare"], False)
    assert moves["additionalProperties"] is False
    assert schema["definitions"]["KafkaSettings"]["properties"]["options"]["properties"].keys() == YOURS.keys()
    assert json_schema({}, complete=False)["properties"]["migrations"]["additionalProperties"]["properties"]


def test_every_reference_is_defined_and_only_a_new_migration_has_a_required_key(schema: dict[str, Any]) -> None:
    text = str(schema)
    names = set(re.findall(r"#/definitions/([\w.]+)", text))
    assert names <= schema["definitions"].keys()
    assert re.findall(r"'required': [^]]*]", text) == ["'required': ['declare']"], "the environment may have other keys"
    assert "'null'" not in text, "TOML has no null"


def test_example_file_has_only_keys_of_the_schema(schema: dict[str, Any]) -> None:
    example = files("infra.init").joinpath("settings_file.toml").read_text(encoding="utf-8")
    for key, value in tomllib.loads(example).items():
        assert_fits(schema, schema["properties"][key], value)
    with pytest.raises(AssertionError, match="tabels"):
        assert_fits(schema, schema["properties"]["databases"], {"main": {"tabels": []}})


def assert_fits(document: Mapping[str, Any], schema: Mapping[str, Any], value: Any) -> None:
    """Assert that each key of a table is allowed, by name or by pattern."""
    for each in schema.get("allOf", [schema]):
        found = document["definitions"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        if isinstance(value, dict):
            for key, inner in value.items():
                patterns = found.get("patternProperties", {}).items()
                allowed = [each for pattern, each in patterns if re.search(pattern, key)]
                allowed += [found["properties"][key]] if key in found.get("properties", {}) else []
                assert allowed or isinstance(found.get("additionalProperties"), dict), key
                for one in allowed:
                    assert_fits(document, one, inner)


class Base(BaseModel):
    colour: str = "red"
    """Of the
    base."""
    size: int = 1


class Derived(Base):
    size: int = Field(default=2)
    """Of the derived."""
    other: int = 3


def test_description_is_the_docstring_below_the_field() -> None:
    assert descriptions(Derived) == {"colour": "Of the base.", "size": "Of the derived."}


def test_models_of_one_name_in_two_migrations_stay_apart() -> None:
    def options(kind: type) -> type[BaseModel]:
        inner = type("Inner", (BaseModel,), {"__annotations__": {"value": kind}, "__module__": __name__})
        return type("Own", (BaseModel,), {"__annotations__": {"inner": inner}, "__module__": __name__})

    definitions_ = json_schema({"one": options(int), "two": options(str)}, complete=True)["definitions"]
    assert definitions_["one.Inner"]["properties"]["value"]["type"] == "integer"
    assert definitions_["two.Inner"]["properties"]["value"]["type"] == "string"
