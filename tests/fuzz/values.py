"""Column types and values for random tables: those of every_type, and key types with many values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.producers.every_type import OWN_SAMPLES, OWN_SINCE, samples

# In a schema that no search path contains, so that an operator found by its bare name belongs to another type.
PRELUDE: Final = """
CREATE SCHEMA ext; CREATE SCHEMA "Sch-ema"; CREATE SCHEMA "s""q";
CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
CREATE TYPE ext.mood AS ENUM ('sad', 'o,k', 'it''s "fine"', 'glad');
CREATE DOMAIN ext.small_int AS int CHECK (VALUE < 1000000);
CREATE DOMAIN ext.short_text AS text CHECK (length(VALUE) < 100);
CREATE DOMAIN ext.small_ints AS ext.small_int[];
CREATE DOMAIN ext.day AS date;
CREATE TYPE ext.pair AS (a int, b text);
CREATE TYPE ext.nested AS (p ext.pair, ps ext.pair[], m ext.mood);
CREATE TYPE ext.float_range AS RANGE (subtype = float8);
"""

CODECS: Final = {"UTF8": "utf-8", "WIN1252": "cp1252", "EUC_JP": "euc_jp", "LATIN2": "iso8859_2", "SQL_ASCII": "ascii"}
"""Encoding of a database → Python's name for it."""

_LETTERS: Final = "abzABZ09 _-é€ÿŠ名ｱー~\U0001f600"
_NO_VALUES: Final = {"xml", "aclitem", "regrole", "refcursor"}
"""Excluded types: without libxml, without equal names in all versions, or of no interest."""


@dataclass(frozen=True)
class Kind:
    """A column type, and how a value of it is drawn, as text or (`expression`) in SQL.

    `respelled` is SQL for another text of an equal value.
    """

    name: str
    draw: Callable[[Random], str]
    collatable: bool = False
    respelled: str = ""
    expression: bool = False


def quoted(value: str) -> str:
    """Return a value as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def letters(random: Random) -> str:
    """Return a short text whose order differs between encodings and collations."""
    return "".join(random.choice(_LETTERS) for _ in range(random.choice((0, 1, 1, 2, 3, 8))))


def _decimal(random: Random) -> str:
    whole = random.randrange(-60, 60)
    return random.choice((f"{whole}", f"{whole}.50", f"{whole}.5", f"{whole}.125", "NaN", "0.00", "-0.001"))


def _moment(random: Random) -> str:
    return (
        f"{random.choice((1, 1969, 2024, 9999))}-{random.randrange(1, 13):02}-{random.randrange(1, 29):02}"
        f" 12:{random.randrange(60):02}:00.{random.randrange(10**6):06}"
    ).rjust(26, "0")


KEYS: Final = (
    *(Kind(name, lambda random: str(random.randrange(-70, 70))) for name in ("int2", "int4", "int8", "ext.small_int")),
    Kind("int4", lambda random: str(random.randrange(200))),
    Kind("text", letters, collatable=True),
    Kind("text", letters, collatable=True),
    Kind("varchar(20)", letters, collatable=True),
    Kind("ext.short_text", letters),
    Kind("bpchar(9)", letters, collatable=True),
    Kind("name", letters),
    Kind("ext.citext", letters, respelled="upper({}::text)::ext.citext"),
    Kind("ext.citext", letters, respelled="lower({}::text)::ext.citext"),
    Kind("ext.ltree", lambda random: ".".join(random.choices(("A", "b", "C_1", "b2"), k=random.randrange(1, 5)))),
    Kind("uuid", lambda random: f"{random.getrandbits(128):032x}"),
    Kind("numeric", _decimal, respelled="({}::text || '0')::numeric"),
    Kind("numeric(8,3)", _decimal),
    Kind(
        "float8",
        lambda random: random.choice(("-0", "0", "NaN", "Infinity", repr(random.uniform(-9, 9)))),
        respelled="CASE WHEN {0} = 0 THEN -{0} ELSE {0} END",
    ),
    Kind("date", lambda random: _moment(random)[:10]),
    Kind("timestamp", _moment),
    Kind("timestamptz", lambda random: _moment(random) + "+00"),
    Kind(
        "interval",
        lambda random: random.choice(("{} days", "{} mons", "{}:00:00")).format(random.randrange(60)),
        respelled="{} - interval '1 day' + interval '24 hours'",
    ),
    Kind("bytea", lambda random: "\\x" + random.randbytes(random.randrange(4)).hex()),
    Kind("inet", lambda random: f"10.0.{random.randrange(3)}.{random.randrange(60)}"),
    Kind("ext.mood", lambda random: random.choice(("sad", "o,k", 'it\'s "fine"', "glad"))),
    # No two of them become equal when an attribute is dropped, which the unique index would not notice.
    Kind("ext.pair", lambda random: f"({(number := random.randrange(30))},{'xyz'[number % 3]})"),
    Kind("ext.day", lambda random: _moment(random)[:10]),
    Kind("jsonb", lambda random: random.choice(("{}", '{{"a": {}}}', "[{}, null]")).format(random.randrange(60))),
    Kind("int4range", lambda random: f"[{random.randrange(30)},{random.randrange(30, 60)})"),
    Kind("text[]", lambda random: "{" + ",".join(random.choices(("a", "B", '"c,d"', "NULL"), k=3)) + "}"),
    Kind('"char"', lambda random: random.choice("abcXYZ019")),
    Kind("bool", lambda random: random.choice("tf")),
)


def plain_kinds(version: int) -> tuple[Kind, ...]:
    """Return the types of non-key columns, with the values of every_type."""
    built_in = {f'"{name}"': values for name, values in samples(version).items() if name not in _NO_VALUES}
    own = {name: values for name, values in OWN_SAMPLES.items() if name != "mood"}
    own |= {name: values for since, more in OWN_SINCE.items() if version >= since for name, values in more.items()}
    made = {name if name not in _IN_EXT else f"ext.{name}": values for name, values in own.items()}
    short = {name: tuple(value for value in values if len(value) < 400) for name, values in (built_in | made).items()}
    return tuple(Kind(name, _one_of(values)) for name, values in short.items() if values)


def _one_of(values: tuple[str, ...]) -> Callable[[Random], str]:
    return lambda random: random.choice(values)


_IN_EXT: Final = frozenset(
    (
        *("small_int", "short_text", "small_ints", "day", "pair", "nested", "float_range", "float_multirange"),
        *("hstore", "citext", "ltree", "lquery", "ltxtquery"),
    )
)

MOOD: Final = Kind("ext.mood", lambda random: random.choice(("sad", "o,k", 'it\'s "fine"', "glad")))
PAIR: Final = Kind("ext.pair", lambda random: f"({random.randrange(9)},{random.choice('xyz')})")
LARGE: Final = Kind(
    "text",
    lambda random: (
        "(SELECT string_agg(md5(i::text), '')"
        f" FROM generate_series({random.randrange(99)}, {random.randrange(170, 400)}) i)"
    ),
    expression=True,
)
"""Values stored out of line, and omitted from an update that does not change them."""
SMALL: Final = Kind("int4", lambda random: str(random.randrange(1000)))
_ENDS: Final = ("59", "59.5", "00")
FAR: Final = Kind(
    "timestamp",
    lambda random: (
        f"{random.choice((1, 2024, 9999, 12345, 294276)):04}-12-31 23:59:{random.choice(('59', '59.5', '00'))}"
    ),
)
"""Times in years inside and outside the range of readers' calendars."""

RETYPED: Final[tuple[tuple[Kind, str, bool], ...]] = (
    (
        Kind("numeric(12,4)", lambda random: f"{random.randrange(9999)}.{random.randrange(9999):04}"),
        "numeric(10,2)",
        False,
    ),
    (Kind("numeric", lambda random: f"{random.randrange(9999)}.{random.randrange(9999):04}"), "numeric(12,2)", True),
    (Kind("numeric(6,1)", lambda random: f"{random.randrange(9999)}.{random.randrange(9)}"), "numeric(5,0)", False),
    (
        Kind("interval second(3)", lambda random: f"{random.randrange(59)}.{random.randrange(999):03}"),
        "interval(1)",
        True,
    ),
    (Kind("timestamp(6)", _moment), "timestamp(0)", True),
    (Kind("timestamptz(6)", lambda random: _moment(random) + "+00"), "timestamptz(2)", True),
    (Kind("time", lambda random: _moment(random)[11:]), "time(1)", True),
    (Kind("varchar(9)", lambda random: random.choice("ab") + " " * random.randrange(8)), "varchar(4)", True),
    (Kind("text", lambda random: random.choice("ab") + " " * random.randrange(8)), "bpchar", False),
    (Kind("int4", lambda random: str(random.randrange(1000))), "text", False),
    (Kind("float8", lambda random: repr(random.uniform(-9, 9))), "float4", False),
    (Kind("json", lambda random: random.choice(('{"b": 1,  "a": 2}', "[1,2]", "{}"))), "jsonb", False),
    (Kind("timestamp", _moment), "date", False),
    (Kind("date", lambda random: _moment(random)[:10]), "timestamp", False),
)
"""Type changes that change existing values, or their text.

The flag: docs/reference/events.md documents a re-snapshot; otherwise the table stops.
"""

WIDENED: Final[tuple[tuple[Kind, str], ...]] = (
    (Kind("int2", lambda random: str(random.randrange(-99, 99))), "int4"),
    (Kind("int4", lambda random: str(random.randrange(-99, 99))), "int8"),
    (Kind("varchar(9)", lambda random: random.choice("abc ")), "varchar(20)"),
    (Kind("varchar", lambda random: random.choice("abc ")), "text"),
    (Kind("timestamp(2)", _moment), "timestamp(5)"),
    (Kind("float4", lambda random: random.choice(("0.1", "-0", "16777217"))), "float8"),
    (Kind("numeric(6,2)", lambda random: f"{random.randrange(99)}.{random.randrange(99):02}"), "numeric(9,2)"),
)
"""Type pairs whose change keeps every value."""
