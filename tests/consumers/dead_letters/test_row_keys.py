"""Decoding of the key columns of a dead letter."""

from __future__ import annotations

import pytest

from consumers.dead_letters.row_keys import RowKeys
from infra.settings.model import Settings
from tests.consumers.container_repositories import Feed

pytestmark = pytest.mark.stack


def test_key_is_decoded_to_columns_and_invalid_bytes_to_none(bootstrap_servers: str, prefix: str) -> None:
    settings = Settings(prefix=prefix, kafka={"bootstrap_servers": bootstrap_servers})  # type: ignore[arg-type]
    key, _ = Feed(settings).upsert(7, "default", None)
    keys = RowKeys(settings)
    assert keys.columns(key) == {"id": 7}
    for broken in (b"", b"\x01\x00", b"\x00\x00\x00\xff\xff\x0e", key[:5] + b"\x80"):
        assert keys.columns(broken) == {}
