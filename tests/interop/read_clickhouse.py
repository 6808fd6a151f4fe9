"""Reads records with ClickHouse's engine (chdb), format AvroConfluent, and writes the rows that remain.

`python -m tests.interop.read_clickhouse REQUEST`. The types are those that ClickHouse takes from the latest schema by
itself. The last record of a key, by offset, is its row; a table engine for Kafka has the offset in `_offset`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from chdb.session import Session

_SETTINGS: Final = {
    "input_format_avro_allow_missing_fields": 1,
    "output_format_json_quote_denormals": 1,
    "output_format_json_quote_64bit_integers": 1,
    "max_threads": 1,
}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    session = Session()
    session.query(f"SET format_avro_schema_registry_url = '{request['registry']}'")
    for name, value in _SETTINGS.items():
        session.query(f"SET {name} = {value}")
    types: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    exact: dict[str, dict[str, Any]] = {}
    for table in request["tables"]:
        types.update(_types(session, table))
        _load(session, table, types)
        rows[table["name"]], exact[table["name"]] = _rows(session, table, types)
    Path(request["answer"]).write_text(json.dumps({"types": types, "rows": rows, "exact": exact}), encoding="utf-8")


def _types(session: Session, table: Mapping[str, Any]) -> dict[str, str]:
    """Return the types that ClickHouse has for the columns of the latest record by itself."""
    latest = _written(table, "latest", _values(table)[-1:])
    shown = ", ".join(f"toTypeName(after.{column['name']}) AS {column['name']}" for column in table["columns"])
    (found,) = _asked(session, f"SELECT {shown} FROM file('{latest}', 'AvroConfluent')")
    return {name: str(type_) for name, type_ in found.items()}


def _load(session: Session, table: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Read the records into a table, with their order.

    A column of the row is named by its path: records from before a change of columns lack some, or have others.
    """
    columns = {"op": "String", "before.Row.id": types["id"], "exact.Exact.after": "Map(String, String)"}
    columns |= {f"after.Row.{column['name']}": types[column["name"]] for column in table["columns"]}
    structure = ", ".join(f"`{name}` {type_}" for name, type_ in columns.items())
    file = _written(table, "values", _values(table))
    session.query(
        f"CREATE TABLE {table['name']} ENGINE = Memory AS SELECT *, rowNumberInAllBlocks() AS place"
        f" FROM file('{file}', 'AvroConfluent', '{structure}')"
    )


def _rows(
    session: Session, table: Mapping[str, Any], types: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
    """Return id → row, and id → exact values."""
    shown = ", ".join(f"{_shown(types, column['name'])} AS {column['name']}" for column in table["columns"])
    found = _asked(
        session,
        f"SELECT {shown}, `exact.Exact.after` AS exact FROM (SELECT *, row_number() OVER (PARTITION BY"
        f" coalesce(`after.Row.id`, `before.Row.id`) ORDER BY place DESC) AS back FROM {table['name']})"
        " WHERE back = 1 AND op != 'd'",
    )
    rows, exact = {}, {}
    for row in found:
        exact[str(row["id"])] = row.pop("exact")
        rows[str(row["id"])] = {name: _reported(types[name], value) for name, value in row.items()}
    return rows, exact


def _shown(types: Mapping[str, str], name: str) -> str:
    """Return the expression of a column as a user would see it: a number with a point, and a date, as text."""
    value = f"`after.Row.{name}`"
    return f"toString({value})" if any(each in types[name] for each in ("Decimal", "Float", "Date")) else value


def _reported(type_: str, value: Any) -> Any:
    """Return what is shown in the form of `comparison`: dates as days and timestamps as microseconds."""
    if value is None or "Date" not in type_:
        return value
    shown = datetime.fromisoformat(value).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return shown.days if "Date32" in type_ else shown // timedelta(microseconds=1)


def _values(table: Mapping[str, Any]) -> list[bytes]:
    """Return the records' values, without tombstones."""
    with Path(table["records"]).open(encoding="utf-8") as lines:
        found = [json.loads(line)[3] for line in lines]
    return [base64.b64decode(value) for value in found if value is not None]


def _written(table: Mapping[str, Any], name: str, values: list[bytes]) -> Path:
    """Write values into one file, one after another, as the format has them."""
    file = Path(table["records"]).with_suffix(f".{name}")
    file.write_bytes(b"".join(values))
    return file


def _asked(session: Session, statement: str) -> list[dict[str, Any]]:
    text = str(session.query(statement, "JSONEachRow"))
    return [json.loads(line) for line in text.splitlines() if line]


if __name__ == "__main__":
    main()
