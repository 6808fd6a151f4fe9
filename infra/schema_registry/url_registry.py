"""Registers Avro schemas in a Confluent-compatible registry."""

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
    """A Confluent-compatible registry; requests are rare, so each opens its own connection."""

    def __init__(self, settings: RegistrySettings) -> None:
        # Without a timeout a registry that accepts a connection but never answers blocks a process forever.
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
                return self._register_as_latest(client, subject, schema)
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
        """Raise HeadraceError unless a registry answers there; no retries."""
        self._configuration["max.retries"] = 0
        with self._client() as client:
            if not isinstance(client.get_subjects(), list):
                raise HeadraceError(
                    f"the server at {self._url} is not a schema registry", remedy="check registry.url in the settings"
                )

    def _register_as_latest(self, client: SchemaRegistryClient, subject: str, schema: AvroSchema) -> int:
        """Make `schema` the latest of `subject`, compatible or not; earlier ids keep their schemas."""
        mine = Schema(canonical(schema), "AVRO")
        try:
            registered: int = client.register_schema(subject, mine)
            is_latest = client.get_latest_version(subject).schema_id == registered
        except SchemaRegistryError as error:
            if error.http_status_code != 409:
                raise
            is_latest = False  # the registry checks compatibility too
        if not is_latest:
            # An older version registered again is not the latest either. Deleting the subject resolves both cases.
            client.delete_subject(subject)
            registered = client.register_schema(subject, mine)
        self._forgotten.discard(subject)
        return registered

    @contextmanager
    def _client(self) -> Iterator[SchemaRegistryClient]:
        """Provide a client, closed at the end, and translate its errors into headrace's."""
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
            # Other errors come from the HTTP client, which confluent-kafka does not export.
            raise Unavailable(
                f"registry at {self._url} does not answer: {' '.join(str(error).split())}",
                remedy="check registry.url in the settings; leave it empty to keep schemas in a topic",
            ) from error


def _without_credentials(url: str) -> str:
    """Return the URL without credentials, for messages."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
