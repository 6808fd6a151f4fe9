"""The keys of rows in the words of their tables: by them a person knows which row an event is of."""

from __future__ import annotations

from functools import cache

from consumers.delivery.topics import schemas_of
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.decoder import KeyDecoder
from schemas.errors import Malformed
from schemas.wire import split_wire


class RowKeys:
    """Reads the keys of records; connects when the first one comes."""

    def __init__(self, settings: Settings) -> None:
        self._schemas = cache(lambda: schemas_of(open_registry(settings)))
        self._decoder = cache(lambda schema_id: KeyDecoder(self._schemas()(schema_id)))

    def columns(self, key: bytes) -> dict[str, object]:
        """Return the columns of a key; none where it cannot be read, which may be why its event is parked."""
        try:
            schema_id, _ = split_wire(key)
            columns: dict[str, object] = self._decoder(schema_id).decode_key(key)
        except Malformed:
            return {}
        return columns
