"""Values of every column type: ordinary ones, the ends of the range, and values that other systems lose."""

from __future__ import annotations

from typing import Final

DIGITS: Final = "1234567890" * 100

SAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "aclitem": ("=r/postgres",),
    "bit": ("1", "0"),
    "bool": ("true", "false"),
    "box": ("(1,2),(3,4)", "(Infinity,0),(-1,NaN)"),
    "bpchar": ("ab  ", "", "é"),
    "bytea": ("\\x00ff5c0a09", "", "\\x" + "ab" * 3000),
    "char": ("a", ""),
    "cid": ("0", "4294967295"),
    "cidr": ("10.0.0.0/8", "::/0"),
    "circle": ("<(1,2),3>", "<(0.1,-0.1),1e300>"),
    "date": (
        "2024-02-29",
        "infinity",
        "-infinity",
        "4713-01-01 BC",
        "5874897-12-31",
        "0001-01-01",
        "9999-12-31",
        "10000-01-01",
        "0001-12-31 BC",
        "1969-12-31",
    ),
    "float4": ("0.1", "NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "16777217"),
    "float8": ("0.1", "NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.30000000000000004"),
    "inet": ("10.0.0.1", "10.0.0.1/8", "::1", "fe80::1/64"),
    "int2": ("-32768", "32767", "0"),
    "int2vector": ("1 2 -3", ""),
    "int4": ("-2147483648", "2147483647", "0", "-1"),
    "int8": ("-9223372036854775808", "9223372036854775807", "0"),
    "interval": ("1 year 2 mons 3 days 04:05:06.789", "-1 days", "00:00:00", "-178000000 years", "1 day -00:00:01"),
    "json": ('{"a": [1,  null, "\\u00e9"], "a": 2}', "null", "[]"),
    "jsonb": ('{"b": 1e400, "a": "\\"\\\\ é"}', "null", '"tab\\t"'),
    "jsonpath": ("$.a[*] ? (@ > 1)",),
    "line": ("{1,-1,0}",),
    "lseg": ("[(1,2),(3,4)]",),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "money": ("1234.56", "-0.01", "92233720368547758.07"),
    "name": ("a name", "x" * 63),
    "numeric": ("0", "NaN", "Infinity", "-Infinity", "0.000", "-1e-20", DIGITS, f"-{DIGITS}.{DIGITS}", "1e1000"),
    "oid": ("0", "4294967295"),
    "oidvector": ("1 4294967295", ""),
    "path": ("((1,2),(3,4))", "[(1,2),(3,4)]"),
    "pg_lsn": ("16/B374D848", "0/0", "FFFFFFFF/FFFFFFFF"),
    "pg_snapshot": ("10:20:10,14,15", "1:1:"),
    "point": ("(1,2)", "(0.1,-1e-300)", "(NaN,Infinity)"),
    "polygon": ("((0,0),(1,1),(2,0))",),
    "refcursor": ("cursor",),
    "regclass": ("pg_class", "4000000000"),
    "regcollation": ('"C"',),
    "regconfig": ("english",),
    "regdictionary": ("simple",),
    "regnamespace": ("pg_catalog",),
    "regoper": ("||/",),
    "regoperator": ("+(integer,integer)",),
    "regproc": ("now",),
    "regprocedure": ("sum(integer)",),
    "regrole": ("postgres",),
    "regtype": ("integer", "timestamp with time zone"),
    "text": (
        "",
        "tab\t newline\n return\r backslash\\ \\N \\. é 名 \U0001f600",
        "\\N",
        "NULL",
        "\b\f\v\x01",
        "x" * 70_000,
    ),
    "tid": ("(0,1)", "(4294967295,65535)"),
    "time": ("00:00:00", "24:00:00", "23:59:59.999999", "12:30:00.5"),
    "timestamp": (
        "2024-02-29 12:34:56.789",
        "infinity",
        "-infinity",
        "4713-11-24 00:00:00 BC",
        "294276-12-31 23:59:59.999999",
        "294276-12-31 23:59:59",
        "0001-01-01 00:00:00",
        "9999-12-31 23:59:59.999999",
        "1969-12-31 23:59:59.999999",
    ),
    "timestamptz": (
        "2024-02-29 12:34:56.789+03",
        "infinity",
        "-infinity",
        "4713-11-24 00:00:00+00 BC",
        "294276-12-31 23:59:59.999999+00",
        "294276-12-31 23:59:59+00",
        "0001-01-01 00:00:00+00",
        "10000-01-01 00:00:00+00",
        "1970-01-01 00:00:00+00",
    ),
    "timetz": ("24:00:00+15:59", "00:00:00-15:59:59", "10:00:00.000001+05"),
    "tsquery": ("'fat' & 'rat' | !'cat':*A", ""),
    "tsvector": ("'a':1A,2 'it''s':3 'back\\\\slash':4", ""),
    "txid_snapshot": ("10:20:10,14,15",),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"),
    "varbit": ("", "10110", "0" * 100),
    "varchar": ("", "tab\t"),
    "xid": ("0", "4294967295"),
    "xid8": ("0", "18446744073709551615"),
    "xml": ('<a b="c">é&amp;</a>', "<!-- no -->x"),
    "daterange": ("[2024-01-01,2024-02-01)", "empty", "(,)", "[-infinity,infinity]"),
    "int4range": ("[1,10)", "empty", "(,5)"),
    "int8range": ("[1,10)", "[-9223372036854775808,)"),
    "numrange": ("[1.5,NaN]", "(0.1,0.2]"),
    "tsrange": ("[2024-01-01 00:00:00,infinity)", "[4713-11-24 00:00:00 BC,)"),
    "tstzrange": ("[2024-01-01 00:00:00+03,)",),
    "datemultirange": ("{[2024-01-01,2024-02-01),[2025-01-01,)}", "{}"),
    "int4multirange": ("{[1,3),[5,8)}", "{}"),
    "int8multirange": ("{[1,3)}",),
    "nummultirange": ("{[1.5,2.5]}",),
    "tsmultirange": ("{[2024-01-01 00:00:00,)}",),
    "tstzmultirange": ("{[2024-01-01 00:00:00+00,)}",),
}
"""Name in pg_type → values as text."""

SINCE: Final[dict[int, dict[str, tuple[str, ...]]]] = {
    16: {"char": ("\\377",)},  # an older server writes the byte itself, which is no text in any encoding
    17: {"interval": ("infinity", "-infinity")},
}
"""Major version of PostgreSQL → what it and newer ones have too."""

WITHOUT_VALUES: Final = {
    "gtsvector": "an index's own",
    "pg_brin_bloom_summary": "an index's own",
    "pg_brin_minmax_multi_summary": "an index's own",
    "pg_dependencies": "the statistics' own",
    "pg_mcv_list": "the statistics' own",
    "pg_ndistinct": "the statistics' own",
    "pg_node_tree": "the catalog's own",
}
"""Catalog types without writable values: their columns are null."""

OWN_TYPES: Final = """
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION ltree;
CREATE TYPE mood AS ENUM ('sad', 'o,k', 'it''s "fine"', 'é');
CREATE DOMAIN small_int AS int CHECK (VALUE < 1000);
CREATE DOMAIN short_text AS text CHECK (length(VALUE) < 100);
CREATE DOMAIN small_ints AS small_int[];
CREATE DOMAIN day AS date;
CREATE TYPE pair AS (a int, b text);
CREATE TYPE nested AS (p pair, ps pair[], m mood);
CREATE TYPE float_range AS RANGE (subtype = float8);
"""

OWN_SAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "mood": ("sad", "o,k", 'it\'s "fine"', "é"),
    "small_int": ("7", "-7"),
    "short_text": ("tab\t", ""),
    "small_ints": ("{1,NULL,3}", "{}"),
    "day": ("2024-02-29", "infinity"),
    "pair": ("(1,two)", "(,)", '(1,"a ""b"" , \\\\ c")'),
    "nested": ('("(1,x)","{""(2,y)""}",sad)', "(,,)"),
    "float_range": ("[0.1,0.2)",),
    "float_multirange": ("{[0.1,0.2)}",),
    "hstore": ('"a"=>"1", "b"=>NULL, "c d"=>"\\"q\\""', ""),
    "citext": ("MiXed", ""),
    "ltree": ("Top.Science.Astronomy", ""),
    "lquery": ("Top.*{0,2}.sport*@",),
    "ltxtquery": ("Science & !Art",),
    # With modifiers, which decide the Avro type of a numeric and round the others.
    "numeric(12,3)": ("123456789.125", "NaN", "-0.001", "0"),
    "numeric(5,5)": ("0.12345", "-0.99999"),
    "numeric(1000,500)": ("1" * 500 + "." + "7" * 500, "-0.5"),
    "char(5)": ("ab", "", "ééééé"),
    "varchar(3)": ("abc", ""),
    "bit(8)": ("10101010",),
    "varbit(8)": ("101",),
    "timestamp(0)": ("2024-02-29 12:34:56",),
    "timestamptz(3)": ("2024-02-29 12:34:56.789+00",),
    "time(1)": ("12:00:00.5",),
    "interval(2)": ("00:00:01.25",),
    "interval year to month": ("1 year 2 mons",),
    "int[][]": ("{{1,2},{3,NULL}}", "[0:1]={1,2}"),
    "text[]": ('{"a,b","",NULL,"NULL","q\\"\\\\",é}',),
}
"""Column type → values as text."""


_CLOCKS: Final[dict[str, tuple[str, ...]]] = {
    "timestamp({})": (
        "2024-02-29 12:34:56.7891235",
        "1969-12-31 23:59:59.9999994",
        "infinity",
        "4713-11-24 00:00:00 BC",
    ),
    "timestamptz({})": ("2024-02-29 12:34:56.7891235+03", "0001-01-01 00:00:00.5+00", "-infinity"),
    "time({})": ("12:34:56.7891235", "23:59:59.9999994", "24:00:00"),
    "timetz({})": ("12:34:56.7891235+05:30", "00:00:00.0000005-15:59"),
    "interval({})": ("1 mon -3 days 04:05:06.7891235", "-00:00:00.0000005"),
}
_DIGITS: Final = ((1, 0), (2, 1), (4, 0), (9, 8), (18, 0), (19, 2), (38, 10), (39, 20), (100, 50), (1000, 2))
_INTERVALS: Final = (
    *("year", "month", "day", "hour", "minute", "second", "day to hour", "day to minute", "day to second"),
    *("hour to minute", "hour to second", "minute to second", "second(2)", "day to second(4)", "minute to second(0)"),
)
_DOMAINS: Final[dict[str, tuple[str, ...]]] = {
    "bool": ("t", "f"),
    "int2": ("-32768",),
    "int8": ("9223372036854775807",),
    "float4": ("0.1", "NaN"),
    "float8": ("5e-324", "-Infinity"),
    "numeric": ("NaN", "-0.0010"),
    "numeric(9,2)": ("1234567.89", "NaN"),
    "varchar(5)": ("é名", ""),
    "char(4)": ("ab", ""),
    "bytea": ("\\x00ff",),
    "time(2)": ("24:00:00", "01:02:03.45"),
    "timestamp": ("-infinity", "2024-02-29 12:34:56.789"),
    "timestamptz(1)": ("infinity", "2024-02-29 12:34:56.8+00"),
    "interval": ("1 year -1 days",),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
    "json": ('{"a": 1,  "a": 2}',),
    "jsonb": ('{"a": 1e400}',),
    "inet": ("fe80::1/64",),
    "bit(3)": ("101",),
    "int4range": ("[1,5)", "empty"),
    "mood": ("o,k",),
    "pair": ('(1,"a, b")',),
    "text[]": ('{NULL,"NULL",""}',),
    "hstore": ('"a"=>NULL',),
    "citext": ("MiXed",),
}
"""Base type of a domain → values."""

DOMAIN_TYPES: Final = "".join(f"CREATE DOMAIN domain_{place} AS {name};\n" for place, name in enumerate(_DOMAINS))

MODIFIED: Final[dict[str, tuple[str, ...]]] = {
    **{name.format(digits): values for name, values in _CLOCKS.items() for digits in range(7)},
    **{f"interval {fields}": ("1 year 2 mons 3 days 04:05:06.789", "-1 days") for fields in _INTERVALS},
    **{
        f"numeric({digits},{scale})": (f"{'9' * (digits - scale)}.{'9' * scale}", "-0.5" if scale else "-1", "NaN")
        for digits, scale in (
            (1, 0),
            (2, 1),
            (4, 0),
            (9, 8),
            (18, 0),
            (19, 2),
            (38, 10),
            (39, 20),
            (100, 50),
            (1000, 2),
        )
    },
    **{f"char({length})": ("a", " a ", "é") for length in (1, 3, 200)},
    **{f"varchar({length})": ("a ", "é名") for length in (2, 10, 100_000)},
    **{f"bit({length})": ("1" * length,) for length in (1, 7, 64)},
    **{f"varbit({length})": ("", "1" * length) for length in (1, 7, 64)},
    **{f"domain_{place}": values for place, values in enumerate(_DOMAINS.values())},
    **{f"domain_{place}[]": ("{NULL}", "{}") for place in range(len(_DOMAINS))},
    "mood[]": ('{sad,"o,k",NULL}', "{}"),
    "pair[]": ('{"(1,two)","(,)"}',),
    "nested[]": ('{"(,,)"}',),
    "float_range[]": ('{"[0.1,0.2)"}',),
    "citext[]": ("{MiXed,NULL}",),
    "hstore[]": ('{"\\"a\\"=>\\"1\\""}',),
    "ltree[]": ("{Top.Science}",),
    "numeric(12,3)[]": ("{1.500,NaN}",),
    "timestamptz(3)[]": ('{"2024-02-29 12:34:56.789+00",infinity}',),
    "bytea[]": ('{"\\\\x00ff"}',),
    "jsonb[]": ('{"{\\"a\\": 1}"}',),
    "bool[]": ("{t,f,NULL}",),
}
"""More column types: every number of digits, modifiers, domains over them and arrays of them."""

OWN_SINCE: Final[dict[int, dict[str, tuple[str, ...]]]] = {
    15: {"numeric(3,-2)": ("12300",), "numeric(2,4)": ("0.0012",)},
}
"""Major version of PostgreSQL → what it and newer ones have too."""


def samples(version: int) -> dict[str, tuple[str, ...]]:
    """Return the values of built-in types for a server of this major version."""
    merged = dict(SAMPLES)
    for since, more in SINCE.items():
        if version >= since:
            merged.update({name: merged[name] + values for name, values in more.items()})
    return merged


def own_samples(version: int) -> dict[str, tuple[str, ...]]:
    """Return the values of the types of OWN_TYPES, and of types with modifiers, for a server of this major version."""
    merged = OWN_SAMPLES | MODIFIED
    for since, more in OWN_SINCE.items():
        if version >= since:
            merged.update(more)
    return merged


KEYED: Final = (
    *('"bit"', '"bool"', '"bpchar"', '"bytea"', '"char"', '"cidr"', '"date"', '"float4"', '"float8"', '"inet"'),
    *('"int2"', '"int4"', '"int8"', '"interval"', '"jsonb"', '"macaddr"', '"macaddr8"', '"money"', '"name"'),
    *('"numeric"', '"oid"', '"oidvector"', '"pg_lsn"', '"regclass"', '"text"', '"tid"', '"time"', '"timestamp"'),
    *('"timestamptz"', '"timetz"', '"tsquery"', '"tsvector"', '"uuid"', '"varbit"', '"varchar"', '"xid8"'),
    *('"daterange"', '"int4range"', '"numrange"', '"tstzrange"', '"datemultirange"', '"nummultirange"'),
    *('"text"[]', '"timestamp"[]', "int[][]", "mood", "small_int", "short_text", "small_ints", "day", "pair", "nested"),
    *("float_range", "hstore", "citext", "ltree", "numeric(12,3)", "numeric(3,-2)", "char(5)", "timestamptz(3)"),
    "interval(2)",
)
"""Column types with an order, which may be in a key."""
