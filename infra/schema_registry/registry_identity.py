"""Recognizes the registry that gave a topic's schema ids, by its answers for them and not by its address.

A registry may get another address, and another registry may get its address. In both cases only this counts: does each
recorded id still have the recorded schema? So every id of a topic is recorded with a fingerprint of its schema
(`SnapshotState.registered`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Protocol

from infra.settings.model import Settings
from schemas.errors import Refused
from schemas.topics import schemas_topic

_NAMED: Final = ("record", "error", "enum", "fixed")
_PRIMITIVE: Final = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_IRRELEVANT: Final = ("doc", "aliases", "default", "order")
"""Attributes on which the decoding of a record does not depend: a registry may drop or reformat them."""


class RegistryChanged(Refused):
    """Set registry.url to the registry that has its schemas, or restore that registry; to move to another one, see
    docs/how-to/registry.md."""


class Knows(Protocol):
    """A registry, as far as it is compared; see `infra.schema_registry.topic_registry.Registry`."""

    def known(self, schema_ids: Collection[int]) -> Mapping[int, Any]: ...


def fingerprint(schema: Any) -> str:
    """Return the fingerprint of a parsed schema: equal for all texts of a schema by which records decode equally.

    Registries store a schema in their own form: with other spaces, other order of attributes, or shorter names.
    """
    text = json.dumps(_reduced(schema, ""), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reduced(avro: Any, namespace: str) -> Any:
    """Return a schema with full names, and without what is irrelevant."""
    if isinstance(avro, list):
        return [_reduced(branch, namespace) for branch in avro]
    if isinstance(avro, str):
        return avro if avro in _PRIMITIVE else _full(avro, namespace)
    if not isinstance(avro, dict):
        return avro
    found = {name: value for name, value in avro.items() if name not in _IRRELEVANT}
    kind = found.get("type")
    if kind in _NAMED:
        found["name"] = _full(str(found.get("name")), str(found.pop("namespace", namespace)))
        namespace = found["name"].rpartition(".")[0]
    elif found.keys() == {"type"}:
        return _reduced(kind, namespace)
    elif kind not in ("array", "map"):
        found["type"] = _reduced(kind, namespace)
    for nested in ("items", "values"):
        if nested in found:
            found[nested] = _reduced(found[nested], namespace)
    if isinstance(found.get("fields"), list):
        found["fields"] = [_reduced_field(field, namespace) for field in found["fields"]]
    return found


def _reduced_field(field: Any, namespace: str) -> Any:
    if not isinstance(field, dict):
        return field
    kept = {name: value for name, value in field.items() if name not in _IRRELEVANT}
    return {**kept, "type": _reduced(kept.get("type"), namespace)}


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def registry_place(settings: Settings) -> str:
    """Return the registry's name for messages."""
    if settings.registry.url:
        return f"the registry at {without_credentials(settings.registry.url)}"
    return f"topic {schemas_topic(settings.prefix)}"


def without_credentials(urls: str) -> str:
    """Return a URL, or several with commas between them, without credentials, for messages."""
    shown = []
    for url in re.split(r",(?=\s*https?://)", urls):
        scheme, separator, rest = url.rpartition("://")
        shown.append(f"{scheme}{separator}{rest.rpartition('@')[2]}")
    return ",".join(shown)


def changed_topics(
    settings: Settings, registry: Knows, recorded: Mapping[str, Collection[Mapping[int, str]]]
) -> Iterator[RegistryChanged]:
    """Yield an error for each topic with a schema id that is unknown to the registry, or means another schema there.

    `recorded` is topic → what each of its records has: schema id → fingerprint. A topic is right if one of its records
    is: another may be older than the topic, which was then deleted. Raises HeadraceError if the registry does not
    answer.
    """
    wanted = sorted({number for records in recorded.values() for ids in records for number in ids})
    known = {number: _fingerprint(schema) for number, schema in registry.known(wanted).items()}
    place = registry_place(settings)
    for topic, records in recorded.items():
        differences = [_difference(ids, known, place) for ids in records]
        if differences and all(differences):
            yield RegistryChanged(f"topic {topic} has records with schema id {differences[0]}")


def _difference(recorded: Mapping[int, str], known: Mapping[int, str | None], place: str) -> str | None:
    for number, mark in recorded.items():
        if number not in known:
            return f"{number}, which {place} does not know"
        if known[number] != mark:
            return f"{number}, which is another schema in {place}"
    return None


def _fingerprint(schema: Any) -> str | None:
    """Return the fingerprint of whatever a registry has; None if it is too deep to be one of headrace's."""
    try:
        return fingerprint(schema)
    except RecursionError:
        return None


def noted(recorded: Mapping[int, str], registered: Mapping[int, Any], place: str) -> Mapping[int, str]:
    """Return `recorded` with the ids and schemas that were just registered; the same object if it has them already.

    Raises RegistryChanged if an id was recorded with another schema.
    """
    new = {number: fingerprint(schema) for number, schema in registered.items()}
    for number, mark in new.items():
        if recorded.get(number, mark) != mark:
            raise RegistryChanged(
                f"the registry gave {place} schema id {number}, which its topic has for another schema"
            )
    return recorded if new.keys() <= recorded.keys() else {**recorded, **new}
