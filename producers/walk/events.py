"""Encodes a storage walk as records of `<prefix>.praefect.storage_walk`, which has the format of a table's topic.

A row has one of four kinds, and its key is (virtual_storage, storage, relative_path):

`repository`  a repository, by its path in the storage; `modified_at` is its directory's mtime.
`problem`     a directory that could not be read, or a repository whose name is not text; `detail` is the reason.
`start`       the first record of a walk in every partition. It has the key of the previous walk's `end` and so replaces
              it, before compaction removes rows that are found again.
`end`         the last record of a walk in every partition: `repositories` and `problems` of the whole walk, and
              `complete` if every directory was read. A walk that was stopped, killed or taken over has none.
              `partitions` is the number of ends.

A complete walk removes rows that earlier walks found and it did not: a `d` event and its tombstone, before the ends.
After an incomplete walk such rows stay, since they may be in directories that were not read.

`walk_id` counts a storage's walks, including those without an end; with the ordinal it is the position. The paths of
`start`, `end` and names that are not text begin with a slash, which no repository's path does.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from infra.schema_registry.registry_identity import fingerprint
from infra.schema_registry.topic_registry import Registry
from producers.walk.directory import Found, Repository
from schemas.avro import key_schema, value_schema
from schemas.codec.decoder import KeyDecoder
from schemas.codec.encoder import Encoder
from schemas.events import Column, Op, Origin, Relation
from schemas.gitlab_schemas import PRAEFECT
from schemas.positions import Lsn
from schemas.wire import split_wire

_BOOLEAN, _BIGINT, _INTEGER, _TEXT, _TIMESTAMPTZ = 16, 20, 23, 25, 1184

KEY: Final = ("virtual_storage", "storage", "relative_path")

RELATION: Final = Relation(
    oid=0,
    schema="public",
    table="storage_walk",
    replica_identity="d",
    columns=(
        Column("virtual_storage", _TEXT),
        Column("storage", _TEXT),
        Column("relative_path", _TEXT),
        Column("kind", _TEXT),
        Column("walk_id", _BIGINT),
        Column("is_primary", _BOOLEAN),
        Column("modified_at", _TIMESTAMPTZ),
        Column("detail", _TEXT),
        Column("repositories", _BIGINT),
        Column("problems", _BIGINT),
        Column("complete", _BOOLEAN),
        Column("partitions", _INTEGER),
    ),
    identity_columns=KEY,
)
"""The relation of the topic: every value in PostgreSQL's text format."""

CONNECTOR: Final = "gitaly"
"""The `source.connector` of a walk's events."""

NO_TEXT: Final = "the name is not valid UTF-8, or contains NUL"
OUTSIDE: Final = "the path leaves the storage"

_EPOCH: Final = datetime(1970, 1, 1)


class Kind(StrEnum):
    """The kinds of rows; see the module's docstring."""

    REPOSITORY = "repository"
    PROBLEM = "problem"
    START = "start"
    END = "end"


def source_name(virtual_storage: str, storage: str) -> str:
    """Return the `source.name` of a walk's events: positions order the events of one storage."""
    return f"{virtual_storage}/{storage}"


class WalkEncoder:
    """Makes the records of one walk of one storage, each with the next ordinal, and counts them."""

    def __init__(
        self,
        registry: Registry,
        topic: str,
        virtual_storage: str,
        storage: str,
        *,
        walk_id: int,
        is_primary: bool,
        partitions: int,
    ) -> None:
        """Registers the schemas; raises IncompatibleSchema."""
        key, value = key_schema(RELATION, PRAEFECT, KEY), value_schema(RELATION, PRAEFECT)
        key_id, value_id = registry.register(f"{topic}-key", key), registry.register(f"{topic}-value", value)
        self.registered = {key_id: fingerprint(key), value_id: fingerprint(value)}
        """The schema ids of the walk's records, each with its schema's fingerprint."""
        encoder = Encoder(
            RELATION,
            PRAEFECT,
            KEY,
            origin=Origin(source_name(virtual_storage, storage), virtual_storage, CONNECTOR),
            key_schema_id=key_id,
            value_schema_id=value_id,
        )
        self._registry = registry
        self._keys: dict[int, KeyDecoder] = {}
        self._change, self._delete = encoder.change, encoder.delete
        now = time.time_ns() // 1_000_000
        self._prefix = encoder.event_prefix(Op.READ, lsn=Lsn(walk_id), xid=None, ts_ms=now, snapshot=True)
        self._delete_prefix = encoder.event_prefix(Op.DELETE, lsn=Lsn(walk_id), xid=None, ts_ms=now)
        self._names = (virtual_storage.encode(), storage.encode())
        self._walk = (b"%d" % walk_id, b"t" if is_primary else b"f")
        self._partitions = partitions
        self._ordinal = 0
        self.repositories = 0
        self.problems = 0
        self.removed = 0
        self.unread = 0
        """The number of directories that could not be read; the walk is complete only without any."""

    def start(self) -> list[dict[str, Any]]:
        """Return the records that begin the walk, one for each partition."""
        return [self._mark(Kind.START, partition, (None, None, None)) for partition in range(self._partitions)]

    def end(self) -> list[dict[str, Any]]:
        """Return the records that end the walk, one for each partition."""
        counts = (b"%d" % self.repositories, b"%d" % self.problems, b"f" if self.unread else b"t")
        return [self._mark(Kind.END, partition, counts) for partition in range(self._partitions)]

    def found(self, found: Found) -> tuple[dict[str, Any], str | None]:
        """Return the record of what a walk found, and a one-line description if it is a problem."""
        text = path_text(found.path)
        if isinstance(found, Repository):
            detail = NO_TEXT if text is None else None if _stays(text) else OUTSIDE
            modified = timestamptz(found.modified)
        else:
            detail, modified = found.reason, None
            self.unread += 1
        if detail is None:
            assert text is not None
            self.repositories += 1
            return self._record(Kind.REPOSITORY, text.encode(), modified, None), None
        self.problems += 1
        name = text if text is not None and _stays(text) else f"/{escaped(found.path)}"
        return self._record(Kind.PROBLEM, name.encode(), modified, detail.encode()), f"{name!r}: {detail}"

    def removed_row(self, partition: int, key: bytes) -> list[dict[str, Any]]:
        """Return the records that remove a row of an earlier walk, by its key in the partition."""
        schema_id, _ = split_wire(key)
        if schema_id not in self._keys:
            self._keys[schema_id] = KeyDecoder(self._registry.schema(schema_id))
        names = self._keys[schema_id].decode_key(key)
        row = [str(names[column.name]).encode() if column.name in KEY else None for column in RELATION.columns]
        _, value = self._delete(self._delete_prefix, self._ordinal, time.time_ns() // 1_000_000, row)
        self._ordinal += 1
        self.removed += 1
        # To the row's own partition, not its key's: the topic may have got more partitions since.
        return [{"key": key, "value": each, "partition": partition} for each in (value, None)]

    def _mark(self, kind: Kind, partition: int, counts: tuple[bytes | None, ...]) -> dict[str, Any]:
        record = self._record(kind, b"/%d" % partition, None, None, *counts, b"%d" % self._partitions)
        return {**record, "partition": partition}

    def _record(
        self, kind: Kind, path: bytes, modified: bytes | None, detail: bytes | None, *counts: bytes | None
    ) -> dict[str, Any]:
        row = (*self._names, path, kind.encode(), *self._walk, modified, detail, *(counts or (None,) * 4))
        key, value = self._change(self._prefix, self._ordinal, time.time_ns() // 1_000_000, row)
        self._ordinal += 1
        return {"key": key, "value": value}


def path_text(path: bytes) -> str | None:
    """Return a path as text; None if it is not UTF-8 or has a NUL, which PostgreSQL's text cannot hold."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def escaped(path: bytes) -> str:
    r"""Return a readable form of a path that is not text, unique per path: `\\` is a backslash, `\xHH` a byte."""
    shown = path.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    return "".join(
        character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in character.encode())
        for character in shown
    )


def timestamptz(micros: int) -> bytes:
    """Return PostgreSQL's text of a time in microseconds since 1970; infinity if datetime cannot represent it."""
    try:
        return (_EPOCH + timedelta(microseconds=micros)).isoformat(" ", "microseconds").encode() + b"+00"
    except OverflowError:
        return b"infinity" if micros > 0 else b"-infinity"


def _stays(path: str) -> bool:
    """Whether a path is one that a walk of directories could find; paths from a node are not trusted."""
    return all(part not in ("", ".", "..") for part in path.split("/"))
