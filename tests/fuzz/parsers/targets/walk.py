"""Parses Gitaly's WalkReposResponse, compared with protobuf's own reader, and makes a walk's records of it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.message import DecodeError

from infra.schema_registry.topic_registry import AvroSchema
from producers.walk.events import WalkEncoder, path_text
from producers.walk.gitaly import parse_response
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.errors import Malformed
from tests.fuzz.parsers.target import Target, Violation, agree


def _response() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="walk.proto", package="gitaly", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    made = file.message_type.add(name="WalkReposResponse")
    # As bytes: Go's server accepts strings that are not UTF-8, and so does headrace.
    made.field.add(name="relative_path", number=1, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    made.field.add(
        name="modification_time",
        number=2,
        type="TYPE_MESSAGE",
        type_name=".google.protobuf.Timestamp",
        label="LABEL_OPTIONAL",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gitaly.WalkReposResponse"))


_Response: Final = _response()


class _Registry:
    """Knows the walk's two schemas."""

    def __init__(self) -> None:
        self.schemas: list[AvroSchema] = []

    def register(self, subject: str, schema: AvroSchema) -> int:
        del subject
        self.schemas.append(schema)
        return len(self.schemas) - 1

    def register_all(self, wanted: object) -> None:
        """Register nothing."""

    def forget(self, subject: str) -> None:
        """Do nothing."""

    def schema(self, schema_id: int) -> AvroSchema:
        return self.schemas[schema_id]

    def known(self, schema_ids: Collection[int]) -> dict[int, AvroSchema]:
        return {number: self.schemas[number] for number in schema_ids}


_registry: Final = _Registry()
_walk: Final = WalkEncoder(_registry, "t", "default", "gitaly-0", walk_id=1, is_primary=True, partitions=4)
_keys, _values = KeyDecoder(_registry.schemas[0]), Decoder(_registry.schemas[1])


def _run(data: bytes) -> None:
    try:
        repository = parse_response(data)
    except Malformed as refusal:
        if "group" in str(refusal.__cause__):
            return  # protobuf skips groups, which no message of this service ever had
        try:
            expected = _Response.FromString(data)
        except DecodeError:
            return
        raise Violation(f"protobuf reads what headrace refuses: {expected}") from refusal
    # Protobuf also refuses some inputs that headrace may read, such as field number 0.
    with contextlib.suppress(DecodeError):
        expected = _Response.FromString(data)
        agree("paths", repository.path, expected.relative_path)
        stamp = expected.modification_time
        agree("times", repository.modified, stamp.seconds * 1_000_000 + stamp.nanos // 1000)
    record, _ = _walk.found(repository)
    event = _values.decode(record["value"])
    key = _keys.decode_key(record["key"])
    assert event.after is not None
    agree("the key and the row", key["relative_path"], event.after["relative_path"])
    if event.after["kind"] == "repository":
        agree("the path", event.after["relative_path"], path_text(repository.path))
        if ".." in str(key["relative_path"]).split("/") or str(key["relative_path"]).startswith("/"):
            raise Violation("a repository outside its storage")


def _seeds() -> Iterator[bytes]:
    paths = (b"@hashed/ab/cd/abcd.git", b"", b"../x", b"\xff", b"a/./b", "ü\0".encode())
    for seconds, path in zip((1_700_000_000, -1, 1 << 62, 0, 253_402_300_799, 5), paths, strict=True):
        response = _Response(relative_path=path)
        response.modification_time.seconds = seconds
        response.modification_time.nanos = 123_456_789
        yield response.SerializeToString()


TARGET = Target(
    "protobuf of storage walks",
    _run,
    _seeds,
    dictionary=(b"\x0a", b"\x12", b"\x08", b"../", b"/", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
)
