"""Normalizes typed values of message keys to the text by which keys are compared.

The Avro key has integers, booleans and uuids as such. A type without an exact Avro type (a date has infinities) is
PostgreSQL's text in the key; its type is in the row's schema.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any, Final
from uuid import UUID

from schemas.avro import COLUMN_PROPERTY, row_record
from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass

_BOOLEANS: Final = {
    **dict.fromkeys(("t", "true", "y", "yes", "on", "1"), "true"),
    **dict.fromkeys(("f", "false", "n", "no", "off", "0"), "false"),
}
_WHOLE: Final = re.compile(r"[+-]?\d+").fullmatch
_DAY: Final = r"-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_CLOCK: Final = r" (?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_FAR_DATE: Final = re.compile(rf"-?infinity|\d{{5,7}}{_DAY}|\d{{4,7}}{_DAY} BC").fullmatch
_FAR_TIME: Final = {
    zoned: re.compile(rf"-?infinity|\d{{5,7}}{_DAY}{_CLOCK}{zone}|\d{{4,7}}{_DAY}{_CLOCK}{zone} BC").fullmatch
    for zoned, zone in ((True, r"\+00"), (False, ""))
}
"""PostgreSQL's text of times outside Python's calendar; with a zone, in UTC."""
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""Never rounds: a key with other digits would be another row's."""
_TOO_FINE: Final = re.compile(r"\.\d{7}").search


@dataclass(frozen=True)
class KeyKind:
    """A key column's Avro type or logical type, with a decimal's precision and scale."""

    name: str
    precision: int = 0
    scale: int = 0


TEXT: Final = KeyKind("string")


def key_kinds(key: dict[str, Any], value: dict[str, Any] | None) -> dict[str, KeyKind]:
    """Return column → kind of a key's schema; `value` is the schema of the table's events, if known."""
    rows = row_record(value)["fields"] if value is not None else []
    of_row = {_column(field): field["type"] for field in rows}
    return {_column(field): _kind(field["type"], of_row.get(_column(field))) for field in key["fields"]}


def text_of(value: object) -> str:
    """Return the text of a decoded key's value, equal to that of `typed` for the same value."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return "NaN" if math.isnan(value) else repr(value + 0.0)
        case _:
            return str(value)


def typed(column: str, raw: str, kind: KeyKind) -> str:
    """Return the normalized text of a typed value, possibly in double quotes. Raises UsageError if it is invalid."""
    text = raw.strip()
    quoted = text.startswith('"') and text.endswith('"') and len(text) > 1
    if quoted:
        text = text[1:-1].replace('""', '"')
    elif kind == TEXT:
        if not raw or raw != text:
            raise _refused(column, raw, "an unquoted string", 'put it in double quotes, for example " x"')
        return raw
    canonical, what, example = _KINDS.get(kind.name, _KINDS["string"])
    try:
        return canonical(text, kind)
    except (ValueError, ArithmeticError):
        raise _refused(column, raw, what, f"for example --where {column}={example}") from None


def _refused(column: str, raw: str, what: str, remedy: str) -> UsageError:
    return UsageError(f"key column {column}: {json.dumps(raw, ensure_ascii=False)} is not {what}", remedy=remedy)


def _column(field: dict[str, Any]) -> str:
    return str(field.get(COLUMN_PROPERTY, field["name"]))


def _kind(avro: Any, of_row: Any) -> KeyKind:
    if isinstance(avro, dict):
        return KeyKind(str(avro.get("logicalType", avro["type"])))
    if avro == "string" and isinstance(of_row, list):
        for branch in of_row:
            if isinstance(branch, dict) and "logicalType" in branch:
                return KeyKind(branch["logicalType"], branch.get("precision", 0), branch.get("scale", 0))
    return KeyKind(str(avro))


def _boolean(text: str, kind: KeyKind) -> str:
    del kind
    if text.lower() not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[text.lower()]


def _whole(text: str, kind: KeyKind) -> str:
    bits = 31 if kind.name == "int" else 63
    if not _WHOLE(text) or not -(1 << bits) <= (number := int(text)) < 1 << bits:
        raise ValueError
    return str(number)


def _float(text: str, kind: KeyKind) -> str:
    value = float(text)
    # A float4 differs from the float8 with the same text.
    return text_of(struct.unpack("<f", struct.pack("<f", value))[0] if kind.name == "float" else value)


def _uuid(text: str, kind: KeyKind) -> str:
    del kind
    return str(UUID(text))


def _date(text: str, kind: KeyKind) -> str:
    del kind
    return text if _FAR_DATE(text) else date.fromisoformat(text).isoformat()


def _time(text: str, kind: KeyKind) -> str:
    del kind
    if text.startswith("24:00"):
        if text.strip("0:.") != "24":
            raise ValueError
        return "24:00:00"
    moment = time.fromisoformat(text)
    if moment.tzinfo is not None or _TOO_FINE(text):
        raise ValueError
    return _clock(moment)


def _timestamp(text: str, kind: KeyKind) -> str:
    zoned = kind.name == "timestamp-micros"
    if _FAR_TIME[zoned](text):
        return text
    moment = datetime.fromisoformat(text)
    if _TOO_FINE(text) or (moment.tzinfo is not None and not zoned):
        raise ValueError
    if zoned:
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"{moment.date().isoformat()} {_clock(moment.time())}{'+00' if zoned else ''}"


def _clock(moment: time) -> str:
    """Return a time of day as PostgreSQL prints it: without trailing zeros."""
    fraction = f".{moment.microsecond:06}".rstrip("0") if moment.microsecond else ""
    return f"{moment.replace(microsecond=0, tzinfo=None).isoformat()}{fraction}"


def _decimal(text: str, kind: KeyKind) -> str:
    number = Decimal(text)
    if not number.is_finite():
        return "NaN" if number.is_nan() else f"{'-' if number < 0 else ''}Infinity"
    scaled = number.scaleb(kind.scale, _EXACT)
    if scaled != scaled.to_integral_value() or abs(scaled) >= Decimal(10) ** kind.precision:
        raise ValueError
    return f"{abs(number) if number == 0 else number:.{kind.scale}f}"


def _text(text: str, kind: KeyKind) -> str:
    del kind
    return text


_Canonical = Callable[[str, KeyKind], str]
_KINDS: Final[dict[str, tuple[_Canonical, str, str]]] = {
    "boolean": (_boolean, "a boolean", "true"),
    "int": (_whole, "an integer in the range of its type", "5,7"),
    "long": (_whole, "an integer in the range of its type", "5,7"),
    "float": (_float, "a number", "0.5"),
    "double": (_float, "a number", "0.5"),
    "uuid": (_uuid, "a uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "date": (_date, "a date", "2026-01-31"),
    "time-micros": (_time, "a time of day", "12:00:00"),
    "timestamp-micros": (_timestamp, "a time", "2026-01-31T12:00:00Z"),
    "local-timestamp-micros": (_timestamp, "a time without a zone", "2026-01-31T12:00:00"),
    "decimal": (_decimal, "a decimal number that fits its precision and scale", "1.50"),
    "string": (_text, "a string", "abc"),
}
"""Kind → its normalization, its description and an example."""
