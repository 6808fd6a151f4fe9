"""Writes docs/reference/settings.md from the models: `python -m tests.settings_reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from consumers.operations import catalog
from infra.settings.description.settings_schema import json_schema
from infra.settings.model import MigrationSettings, Settings

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"
_START: Final = """# Settings

Every key of the settings file, headrace.toml. This page is generated from the models of `infra/settings` and of the
migrations (`python -m tests.settings_reference`); a test compares it with them.

- The file is named by `--config`, else by `HEADRACE_CONFIG`, else it is `headrace.toml` in the working directory.
  `headrace init` writes one.
- An environment variable overrides each key: `HEADRACE_KAFKA__BOOTSTRAP_SERVERS` for `kafka.bootstrap_servers`,
  with two underscores for a dot. A list or a table is JSON there.
- `headrace config check` validates file and environment without a server and reports each mistake with its line. A
  section of a migration that does not exist is a mistake, and consumers of the migration with a similar name refuse
  to start; a migration whose own file is broken exists.
- `headrace config show` prints the effective settings and the origin of each: line, variable or default. Secrets
  are masked.
- `headrace config schema > headrace.schema.json` writes a JSON schema for editors: with `#:schema
  ./headrace.schema.json` as the first line of the file, those that use taplo complete and describe its keys.
- Paths are relative to the file's directory.
"""


def page() -> str:
    """Return the page, as of headrace's own migrations."""
    settings = Settings.model_construct()
    options = {name: kind.options_type for name, kind in catalog.migrations(settings).items()}
    return "\n".join([_START, *_sections(json_schema(options, complete=True))])


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## Top level\n"
    yield from _table(document, document["properties"])
    for name, each in document["properties"].items():
        if name != "migrations":
            yield from _section(document, name, each)
    common = set(MigrationSettings.model_fields)
    sections = document["properties"]["migrations"]["properties"]
    yield "## [migrations.NAME]\n\nThe keys that every migration has:\n"
    yield from _table(
        document, {key: each for key, each in next(iter(sections.values()))["properties"].items() if key in common}
    )
    for name, section in sections.items():
        own = {key: each for key, each in section["properties"].items() if key not in common}
        if own:
            yield f"### [migrations.{name}]\n\nIts own keys:\n"
            yield from _table(document, own)
    yield from _section(document, "migrations.NAME.declare", next(iter(sections.values()))["properties"]["declare"])


def _section(document: Mapping[str, Any], name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    found = _resolved(document, schema)
    for pattern, inner in found.get("patternProperties", {}).items():
        if (below := _resolved(document, inner)).get("properties"):
            del pattern
            yield from _section(document, f"{name}.NAME", below)
    if not found.get("properties") or name == "kafka.options":
        return
    yield f"## [{name}]\n\n{found['description']}\n"
    yield from _table(document, found["properties"])
    for key, each in found["properties"].items():
        yield from _section(document, f"{name}.{key}", each)


def _table(document: Mapping[str, Any], properties: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        f"| `{key}` | {_type(document, each)} | {_default(each)} | {each['description']} |"
        for key, each in properties.items()
        if not _is_section(document, each)
    ]
    if rows:
        yield "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _is_section(document: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    found = _resolved(document, schema)
    inner = (_resolved(document, each) for each in found.get("patternProperties", {}).values())
    whole = "properties" in found and found.get("description") != _options(document)
    return whole or any("properties" in each for each in inner)


def _options(document: Mapping[str, Any]) -> Any:
    return document["definitions"]["KafkaSettings"]["properties"]["options"]["description"]


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for each in schema.get("allOf", [schema]):
        if (reference := each.get("$ref")) is not None:
            found: Mapping[str, Any] = document["definitions"][reference.removeprefix("#/definitions/")]
            return found
    return schema


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    found = _resolved(document, schema)
    if "enum" in found:
        return " or ".join(f"`{each}`" for each in found["enum"])
    if found["type"] == "array":
        return "list of strings"
    if found["type"] == "object":
        return "table"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "string"}
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    bounds = [f"{word} {found[name]}" for name, word in limits.items() if name in found]
    kind = {"password": "secret", "path": "path"}.get(found.get("format", ""), words[found["type"]])
    return " ".join([kind, *bounds])


def _default(schema: Mapping[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if schema.get("default", "") != "" else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
