"""Builds the JSON schema of the settings file, for editors; a description is the docstring below its field."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from pydantic import BaseModel

from infra.settings.kafka_options import YOURS, Flag, OneOf, Option, Whole
from infra.settings.model import MigrationSettings, Settings
from schemas import formats

_DIALECT: Final = "http://json-schema.org/draft-07/schema#"
"""The one that taplo and the editors' TOML extensions read."""


def json_schema(migrations: Mapping[str, type[BaseModel]], *, complete: bool) -> dict[str, Any]:
    """Return the schema of the settings file; `migrations` has the model of each migration's own options.

    `complete`: these are all migrations, so that a section of another name is a mistake unless it declares one. No
    other key is required, since each may come from the environment.
    """
    document = _of_model(Settings)
    models = document["definitions"]
    common = models.pop(MigrationSettings.__name__)
    kafka = models["KafkaSettings"]["properties"]["options"]
    kafka |= {"properties": {name: _option(each) for name, each in YOURS.items()}, "additionalProperties": False}
    sections = {}
    for name, options in sorted(migrations.items()):
        own = _of_model(options)
        models |= {f"{name}.{inner}": each for inner, each in _renamed(own, name).pop("definitions", {}).items()}
        sections[name] = {
            "type": "object",
            "description": f"The migration {name}.",
            "properties": {**common["properties"], **_renamed(own, name)["properties"]},
            "additionalProperties": False,
        }
    document["properties"]["migrations"] = {
        "type": "object",
        "description": document["properties"]["migrations"]["description"],
        "properties": sections,
        "additionalProperties": {
            **common,
            **(
                {"additionalProperties": False, "required": ["declare"]} if complete else {"additionalProperties": True}
            ),
        },
    }
    version = {
        "type": "integer",
        "const": formats.SETTINGS.version,
        "default": 1,
        "description": "The version of the file's format; a newer one than headrace knows is refused.",
    }
    document["properties"] = {formats.VERSION_MARK: version, **document["properties"]}
    return {**document, "$schema": _DIALECT, "title": "Settings of headrace", "description": "headrace.toml"}


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    document = model.model_json_schema(ref_template="#/definitions/{model}")
    definitions = document.pop("$defs", {})
    for kind in _models(model):
        _describe(document if kind is model else definitions[kind.__name__], kind)
    cleaned: dict[str, Any] = _cleaned({**document, "definitions": definitions})
    return cleaned


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Return a model and all that its fields have."""
    found = {model}
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel) and annotation not in found:
            found |= _models(annotation)
        waiting += getattr(annotation, "__args__", ())
    return found


def _describe(document: dict[str, Any], model: type[BaseModel]) -> None:
    for name, text in descriptions(model).items():
        if name in document.get("properties", {}):
            document["properties"][name]["description"] = text
    document["description"] = _one_line((model.__doc__ or "").split("\n\n", maxsplit=1)[0])


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return field → the docstring below it, on one line, of a model and its bases; without their source, nothing."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                    found[name] = _one_line(text)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cleaned(document: Any) -> Any:
    """Return a schema without titles, which repeat the keys, without required keys and without null, which TOML lacks.

    A section has no default, since its keys have.
    """
    if isinstance(document, list):
        return [_cleaned(each) for each in document]
    if not isinstance(document, dict):
        return document
    if len(kinds := [each for each in document.get("anyOf", []) if each != {"type": "null"}]) == 1:
        document = {name: each for name, each in document.items() if name != "anyOf"} | kinds[0]
    if document.get("default", "") is None or isinstance(document.get("default"), dict):
        document = {name: each for name, each in document.items() if name != "default"}
    if "patternProperties" in document:
        document = {**document, "additionalProperties": False}
    found: dict[str, Any] = {}
    for name, each in document.items():
        if name in ("properties", "patternProperties", "definitions"):
            found[name] = {key: _cleaned(value) for key, value in each.items()}
        elif not (name == "required" or (name == "title" and isinstance(each, str))):
            found[name] = _cleaned(each)
    # In draft 7 all else next to a $ref is ignored.
    if "$ref" in found and len(found) > 1:
        found["allOf"] = [{"$ref": found.pop("$ref")}]
    return found


def _renamed(document: Any, migration: str) -> Any:
    """Return a schema whose references name the migration, since models of two migrations may have one name."""
    if isinstance(document, list):
        return [_renamed(each, migration) for each in document]
    if isinstance(document, dict):
        return {name: _renamed(each, migration) for name, each in document.items()}
    if isinstance(document, str) and document.startswith("#/definitions/"):
        return document.replace("#/definitions/", f"#/definitions/{migration}.")
    return document


def _option(option: Option) -> dict[str, Any]:
    """Return the schema of an option of librdkafka; a number may also be in a string."""
    description = f"{option.takes}{f': {option.why}' if option.why else ''}"
    match option.takes:
        case Whole(low, high):
            return {"type": ["integer", "string"], "minimum": low, "maximum": high, "description": description}
        case Flag():
            return {"type": ["boolean", "string"], "description": description}
        case OneOf():
            return {"type": "string", "description": description}
        case _:
            return {"type": ["string", "number"], "description": description}
