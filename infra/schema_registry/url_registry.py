"""Avro schemas in a Confluent-compatible registry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.schema_registry.topic_registry import AvroSchema, UnknownSchema, canonical, readable, refuse_incompatible
from infra.settings.model import RegistrySettings
from schemas.errors import HeadraceError, Unavailable

_ANSWER_SECONDS: Final = 10
"""How long a registry may take to answer."""


class UrlRegistry:
    """A Confluent-compatible registry; it is asked seldom, so each question opens a connection of its own."""

    def __init__(self, settings: RegistrySettings) -> None:
        # Without a timeout a registry that accepts a connection and says nothing holds up a process for good.
        configuration: dict[str, Any] = {"url": settings.url, "timeout": _ANSWER_SECONDS}
        if settings.user:
            configuration["basic.auth.user.info"] = f"{settings.user}:{settings.password.get_secret_value()}"
        self._url = _without_credentials(settings.url)
        self._configuration = configuration
        self._forgotten: set[str] = set()

    def register(self, subject: str, schema: AvroSchema) -> int:
        """See `Registry.register`."""
        with self._client() as client:
            if subject in self._forgotten:
                return self._register_anew(client, subject, schema)
            try:
                latest = json.loads(client.get_latest_version(subject).schema.schema_str or "")
            except SchemaRegistryError as error:
                if error.http_status_code != 404:
                    raise
            else:
                refuse_incompatible(subject, latest, schema)
            registered: int = client.register_schema(subject, Schema(canonical(schema), "AVRO"))
            return registered

    def register_all(self, wanted: Sequence[tuple[str, AvroSchema]]) -> None:
        """See `Registry.register_all`; a registry takes one at a time."""

    def forget(self, subject: str) -> None:
        """See `Registry.forget`."""
        self._forgotten.add(subject)

    def schema(self, schema_id: int) -> AvroSchema:
        """See `Registry.schema`."""
        with self._client() as client:
            try:
                found: AvroSchema = json.loads(client.get_schema(schema_id).schema_str or "")
            except SchemaRegistryError as error:
                if error.http_status_code != 404:
                    raise
                raise UnknownSchema(f"schema id {schema_id} is not in the registry at {self._url}") from error
            return readable(found, schema_id)

    def ensure_answers(self) -> None:
        """Raise HeadraceError unless a registry answers there: one question, not repeated."""
        self._configuration["max.retries"] = 0
        with self._client() as client:
            if not isinstance(client.get_subjects(), list):
                raise HeadraceError(
                    f"what answers at {self._url} is no schema registry", remedy="check registry.url in the settings"
                )

    def _register_anew(self, client: SchemaRegistryClient, subject: str, schema: AvroSchema) -> int:
        """Make `schema` the latest of `subject`, whatever it had; ids given before keep their schemas."""
        mine = Schema(canonical(schema), "AVRO")
        try:
            registered: int = client.register_schema(subject, mine)
            stands = client.get_latest_version(subject).schema_id == registered
        except SchemaRegistryError as error:
            if error.http_status_code != 409:
                raise
            stands = False  # the registry compares too, with what it has under the subject
        if not stands:
            # An older version registered again is not the latest. Both ends with the subject's history.
            client.delete_subject(subject)
            registered = client.register_schema(subject, mine)
        self._forgotten.discard(subject)
        return registered

    @contextmanager
    def _client(self) -> Iterator[SchemaRegistryClient]:
        """Give a client, closed at the end, and turn what it raises into headrace's errors."""
        try:
            with SchemaRegistryClient(self._configuration) as client:
                yield client
        except HeadraceError:
            raise
        except SchemaRegistryError as error:
            raise HeadraceError(
                f"registry at {self._url}: {error.error_message}", remedy="see the registry's own log"
            ) from error
        except Exception as error:
            # Whatever else is raised is the HTTP client's, which confluent-kafka chooses and does not export.
            raise Unavailable(
                f"registry at {self._url} does not answer: {' '.join(str(error).split())}",
                remedy="check registry.url in the settings; empty keeps schemas in a topic",
            ) from error


def _without_credentials(url: str) -> str:
    """Return the url as messages may show it."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
