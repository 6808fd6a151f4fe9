"""Decodes message keys into key columns, which show an operator the row of an event."""

from __future__ import annotations

from functools import cache

from consumers.delivery.topics import schemas_of
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.codec.decoder import KeyDecoder
from schemas.errors import Malformed
from schemas.wire import split_wire


class RowKeys:
    """Decodes the keys of records; connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._schemas = cache(lambda: schemas_of(open_registry(settings)))
        self._decoder = cache(lambda schema_id: KeyDecoder(self._schemas()(schema_id)))

    def columns(self, key: bytes) -> dict[str, object]:
        """Return the columns of a key; empty if undecodable, which may be why its event is a dead letter."""
        try:
            schema_id, _ = split_wire(key)
            columns: dict[str, object] = self._decoder(schema_id).decode_key(key)
        except Malformed:
            return {}
        return columns
