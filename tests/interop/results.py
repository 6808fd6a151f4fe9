"""The types that foreign programs have for each PostgreSQL type, as `make interop WRITE=1` saw them, and their page.

results.json has them, docs/reference/types.md shows them, and test_results.py compares both with headrace's own types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from schemas.column_types import ColumnType, column_type
from tests.interop.columns import COLUMNS

FILE: Final = Path(__file__).with_name("results.json")
PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "types.md"

TITLES: Final = {"connect": "Kafka Connect", "flink": "Flink SQL", "clickhouse": "ClickHouse", "kafkajs": "kafkajs"}
"""Program → the head of its column."""

_FIRST_OWN_OID: Final = 16_384
"""From here on OIDs differ between databases."""

_TEMPLATE: Final = Path(__file__).with_name("types_page.md")


def write(seen: Mapping[str, Mapping[str, str]], columns: Mapping[str, tuple[int, int]]) -> None:
    """Store what a run saw, and write the page. A program that was not run keeps what is stored.

    `seen` is program → column → its type there, `columns` column → OID and modifier of its type in PostgreSQL.
    """
    names = [column.name for column in COLUMNS]
    programs = read()["programs"] if FILE.exists() else {}
    for program, types in seen.items():
        programs[program] = {name: types[name] for name in names}
    stored = {
        "columns": {
            name: [columns[name][0] if columns[name][0] < _FIRST_OWN_OID else 0, columns[name][1]] for name in names
        },
        "programs": {program: programs[program] for program in sorted(programs)},
    }
    FILE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(stored), encoding="utf-8")


def read() -> dict[str, Any]:
    """Return what is stored: `columns` and `programs`, see `write`."""
    stored: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return stored


def page(stored: Mapping[str, Any]) -> str:
    """Return the page that shows what is stored."""
    titles = ["PostgreSQL", "Avro", *TITLES.values()]
    lines = [_row(titles), _row(["---"] * len(titles))]
    for column in COLUMNS:
        seen = [_shown(stored["programs"].get(program, {}).get(column.name, "")) for program in TITLES]
        lines.append(_row([column.label, _avro(column_type(*stored["columns"][column.name])), *seen]))
    return _TEMPLATE.read_text(encoding="utf-8").replace("{table}", "\n".join(lines))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(type_: str) -> str:
    """Return a type without what all have: Connect's own package, and ClickHouse's Nullable."""
    nullable = re.fullmatch(r"Nullable\((.*)\)", type_)
    return nullable[1] if nullable else type_.replace("org.apache.kafka.connect.data.", "")


def _avro(column: ColumnType) -> str:
    avro = column.avro
    if isinstance(avro, str):
        return str(avro)
    if avro["logicalType"] == "decimal":
        return f"bytes, decimal({avro['precision']}, {avro['scale']})"
    return f"{avro['type']}, {avro['logicalType']}"
