"""Maps PostgreSQL columns to Avro types, by the type's OID and modifier.

Types without an exact Avro type are encoded as PostgreSQL's text, so that nothing is lost: enums, domains, arrays,
ranges, json, bytea, intervals, network addresses, every type of an extension. A value that its Avro type cannot
represent (a date has infinities, a decimal NaN) is null in the row, and its text is in the event's field `exact`.

`connect.name` has Debezium's name for a type that Kafka Connect has none for: converters ignore Avro's logical types of
microseconds and uuids. A date and a decimal must not have one, since converters map their logical types themselves.

OIDs: src/include/catalog/pg_type.dat. Modifier of numeric: make_numeric_typmod in
src/backend/utils/adt/numeric.c.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from schemas.lazy_dataclass import dataclass

Schema = dict[str, Any]
"""An Avro record schema as a JSON object."""


class Kind(StrEnum):
    """The conversion of a column's text to Avro and back."""

    BOOLEAN = "boolean"
    INT = "int"
    LONG = "long"
    FLOAT = "float"
    DOUBLE = "double"
    TEXT = "text"
    UUID = "uuid"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    DECIMAL = "decimal"


_AVRO: Final[dict[Kind, Any]] = {
    Kind.BOOLEAN: "boolean",
    Kind.INT: "int",
    Kind.LONG: "long",
    Kind.FLOAT: "float",
    Kind.DOUBLE: "double",
    Kind.TEXT: "string",
    Kind.UUID: {"type": "string", "logicalType": "uuid", "connect.name": "io.debezium.data.Uuid"},
    Kind.DATE: {"type": "int", "logicalType": "date"},
    Kind.TIME: {"type": "long", "logicalType": "time-micros", "connect.name": "io.debezium.time.MicroTime"},
    Kind.TIMESTAMP: {
        "type": "long",
        "logicalType": "local-timestamp-micros",
        "connect.name": "io.debezium.time.MicroTimestamp",
    },
    Kind.TIMESTAMPTZ: {
        "type": "long",
        "logicalType": "timestamp-micros",
        "connect.name": "io.debezium.time.MicroTimestamp",
    },
}

_PARTIAL: Final = {Kind.DATE, Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ, Kind.DECIMAL}


@dataclass(frozen=True)
class ColumnType:
    """A column's type for Avro.

    `low` and `high` are the inclusive bounds of an integer; `precision` and `scale` are a decimal's total digits and
    those after the point.
    """

    kind: Kind
    low: int = 0
    high: int = 0
    precision: int = 0
    scale: int = 0

    @property
    def avro(self) -> Any:
        """The Avro type of a value that Avro can represent exactly."""
        if self.kind is Kind.DECIMAL:
            return {
                "type": "bytes",
                "logicalType": "decimal",
                "precision": self.precision,
                "scale": self.scale,
            }
        plain = _AVRO[self.kind]
        return dict(plain) if isinstance(plain, dict) else plain

    @property
    def partial(self) -> bool:
        """Whether Avro's type cannot represent some values of the column."""
        return self.kind in _PARTIAL

    @property
    def branches(self) -> list[Any]:
        """The union of a column."""
        return ["null", self.avro]

    @property
    def key(self) -> Any:
        """The type in a message key: never null, and text if the type is partial, so that no two rows share a key."""
        return "string" if self.partial else self.avro

    @property
    def toastable(self) -> bool:
        """Whether the stream may omit the value, as TOASTed and unchanged."""
        return self.kind in (Kind.TEXT, Kind.DECIMAL)


_TEXT: Final = ColumnType(Kind.TEXT)
_UNSIGNED: Final = ColumnType(Kind.LONG, 0, (1 << 32) - 1)

_BY_OID: Final[dict[int, ColumnType]] = {
    16: ColumnType(Kind.BOOLEAN),
    20: ColumnType(Kind.LONG, -(1 << 63), (1 << 63) - 1),
    21: ColumnType(Kind.INT, -(1 << 15), (1 << 15) - 1),
    23: ColumnType(Kind.INT, -(1 << 31), (1 << 31) - 1),
    26: _UNSIGNED,  # oid
    28: _UNSIGNED,  # xid
    29: _UNSIGNED,  # cid
    700: ColumnType(Kind.FLOAT),
    701: ColumnType(Kind.DOUBLE),
    1082: ColumnType(Kind.DATE),
    1083: ColumnType(Kind.TIME),
    1114: ColumnType(Kind.TIMESTAMP),
    1184: ColumnType(Kind.TIMESTAMPTZ),
    2950: ColumnType(Kind.UUID),
}

_NUMERIC = 1700


def column_type(type_oid: int, type_modifier: int = -1) -> ColumnType:
    """Return the type by which a column of this PostgreSQL type is encoded; text for every unlisted type.

    A numeric that is unconstrained, has a negative scale or a scale above its precision is text:
    Avro's decimal has a fixed scale between zero and its precision.
    """
    if type_oid != _NUMERIC:
        return _BY_OID.get(type_oid, _TEXT)
    if type_modifier < 4:
        return _TEXT
    precision = (type_modifier - 4) >> 16 & 0xFFFF
    scale = ((type_modifier - 4 & 0x7FF) ^ 1024) - 1024
    if not 0 <= scale <= precision:
        return _TEXT
    return ColumnType(Kind.DECIMAL, precision=precision, scale=scale)
