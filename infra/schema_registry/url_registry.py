"""Registers Avro schemas in a Confluent-compatible registry."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.schema_registry.registry_identity import without_credentials
from infra.schema_registry.registry_login import client_configuration
from infra.schema_registry.topic_registry import AvroSchema, UnknownSchema, canonical, readable, refuse_incompatible
from infra.settings.registry_settings import RegistrySettings
from schemas.errors import HeadraceError, Unavailable

_ANSWER_SECONDS: Final = 10
"""How long a registry may take to answer."""
_NO_SCHEMA: Final = 40403
"""Confluent's error code of an unknown schema id."""


class UrlRegistry:
    """A Confluent-compatible registry, with one HTTP client until the registry is closed or collected.

    `retries` is how often a request is repeated that the registry failed to answer (HTTP 408, 429 and 5xx). Threads may
    share it: their requests, which are rare, wait for each other.
    """

    def __init__(self, settings: RegistrySettings, *, retries: int = 3) -> None:
        # Without a timeout a registry that accepts a connection but never answers blocks a process forever.
        self._configuration = {**client_configuration(settings), "timeout": _ANSWER_SECONDS, "max.retries": retries}
        self._url = without_credentials(settings.url)
        self._forgotten: set[str] = set()
        self._lock = threading.Lock()
        self._opened: SchemaRegistryClient | None = None
        self._closing: weakref.finalize[..., Any] | None = None

    def close(self) -> None:
        """Close the connections. Idempotent; a later request opens them again."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._opened = self._closing = None

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

    def known(self, schema_ids: Collection[int]) -> dict[int, Any]:
        """See `Registry.known`."""
        found: dict[int, Any] = {}
        with self._client() as client:
            for number in schema_ids:
                try:
                    found[number] = _parsed(client.get_schema(number).schema_str)
                except SchemaRegistryError as error:
                    # A server that is no registry answers 404 without this code.
                    if error.error_code != _NO_SCHEMA:
                        raise
        return found

    def ensure_answers(self) -> None:
        """Raise HeadraceError unless a registry answers there."""
        with self._client() as client:
            if not isinstance(client.get_subjects(), list):
                raise HeadraceError(
                    f"the server at {self._url} is not a schema registry", remedy="check registry.url in the settings"
                )

    def ensure_registers(self, subjects: Iterable[str]) -> None:
        """Raise HeadraceError if the registry is read-only, or denies the first existing subject; changes nothing."""
        with self._client() as client:
            mode = _mode(client)
            if mode not in (None, "READWRITE"):
                raise HeadraceError(
                    f"the registry at {self._url} is in mode {mode} and registers no schemas",
                    remedy="set its mode to READWRITE, or registry.url to another one",
                )
            for subject in subjects:
                latest = self._latest(client, subject)
                if latest is not None:
                    self._register_again(client, subject, latest)
                    return

    def _latest(self, client: SchemaRegistryClient, subject: str) -> Schema | None:
        try:
            return client.get_latest_version(subject).schema
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                return None
            raise

    def _register_again(self, client: SchemaRegistryClient, subject: str, latest: Schema) -> None:
        """Register the latest schema of a subject: that needs the right, and changes nothing."""
        try:
            client.register_schema(subject, latest)
        except SchemaRegistryError as error:
            if error.http_status_code not in (401, 403):
                raise
            raise HeadraceError(
                f"the registry at {self._url} denies registering schemas of {subject}: {error.error_message}",
                remedy="grant producers the right to read and write the subjects of their topics",
            ) from error

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
            client.clear_caches()  # type: ignore[no-untyped-call]  # else it answers from there, and registers nothing
            registered = client.register_schema(subject, mine)
        self._forgotten.discard(subject)
        return registered

    @contextmanager
    def _client(self) -> Iterator[SchemaRegistryClient]:
        """Provide the client to one thread at a time, and translate its errors into headrace's."""
        try:
            with self._lock:
                if self._opened is None:
                    self._opened = SchemaRegistryClient(self._configuration)
                    # Most registries live as long as what reads with them, and no command ends them by name.
                    self._closing = weakref.finalize(self, self._opened.close)
                # What it remembers may no longer be so: another process registers, and a registry can be replaced.
                self._opened.clear_caches()  # type: ignore[no-untyped-call]  # confluent-kafka has no types here
                yield self._opened
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


def _parsed(text: str | None) -> Any:
    """Return a schema; None for text that is not JSON, which no schema of headrace is."""
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None


def _mode(client: SchemaRegistryClient) -> str | None:
    """Return the mode of the whole registry; None if it has no modes, or denies the question."""
    try:
        mode = client.get_global_mode()
    except (SchemaRegistryError, LookupError, TypeError):
        return None
    return mode if isinstance(mode, str) else None
