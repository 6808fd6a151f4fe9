"""Implements Confluent's wire format: a zero byte, the schema's id as four bytes (big-endian), then the Avro bytes.

Source: Confluent's documentation, "Schema Registry wire format".
"""

from __future__ import annotations

from typing import Final

from schemas.errors import Malformed

HEADER_BYTES: Final = 5


def wire_header(schema_id: int) -> bytes:
    """Return the bytes in front of a record of this schema.

    Raises OverflowError if the id does not fit 32 bits.
    """
    return b"\x00" + schema_id.to_bytes(4, "big")


def split_wire(record: bytes) -> tuple[int, int]:
    """Return the schema's id and the position of the Avro bytes.

    Raises Malformed if the record is not in this format.
    """
    if len(record) < HEADER_BYTES or record[0] != 0:
        raise Malformed("a record that is not in Confluent's wire format")
    return int.from_bytes(record[1:HEADER_BYTES], "big"), HEADER_BYTES
