"""Reads records with ClickHouse's engine (chdb), format AvroConfluent, and writes the rows that remain.

`python -m tests.interop.read_clickhouse REQUEST`. The types are those that ClickHouse takes from the latest schema by
itself. A table engine for Kafka has a record's partition and place in `_partition` and `_offset`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
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
    types: dict[str, dict[str, str]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    exact: dict[str, list[dict[str, str]]] = {}
    for table in request["tables"]:
        name = table["name"]
        types[name] = _types(session, table)
        _load(session, table, types[name])
        found = _asked(session, _kept(table, types[name]))
        exact[name] = [row.pop("exact") for row in found]
        rows[name] = found
    Path(request["answer"]).write_text(json.dumps({"types": types, "rows": rows, "exact": exact}), encoding="utf-8")


def _types(session: Session, table: Mapping[str, Any]) -> dict[str, str]:
    """Return the types that ClickHouse has for the columns of the latest record by itself."""
    # Ids grow: the newest schema has the columns of the table as it is.
    newest = max((value for values in _partitions(table).values() for value in values), key=lambda value: value[1:5])
    latest = _written(table, "latest", [newest])
    shown = ", ".join(f"toTypeName(after.{column['name']}) AS {column['name']}" for column in table["columns"])
    (found,) = _asked(session, f"SELECT {shown} FROM file('{latest}', 'AvroConfluent')")
    return {name: str(type_) for name, type_ in found.items()}


def _load(session: Session, table: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Read the records into a table, with their partition and their order in it.

    A column of the row is named by its path: records from before a change of columns lack some, or have others.
    """
    columns = {"op": "String", "exact.Exact.before": "Map(String, String)", "exact.Exact.after": "Map(String, String)"}
    columns |= {f"before.Row.{name}": types[name] for name in table["key"]}
    columns |= {f"after.Row.{column['name']}": types[column["name"]] for column in table["columns"]}
    structure = ", ".join(f"`{name}` {type_}" for name, type_ in columns.items())
    session.query(f"CREATE TABLE {table['name']} ({structure}, partition Int32, place UInt64) ENGINE = Memory")
    for partition, values in _partitions(table).items():
        file = _written(table, f"partition-{partition}", values)
        session.query(
            f"INSERT INTO {table['name']} SELECT *, {partition}, rowNumberInAllBlocks() + 1"
            f" FROM file('{file}', 'AvroConfluent', '{structure}')"
        )


def _kept(table: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """Return the query of the rows that remain, and of their exact values.

    The last record of a key, by its place, is its row; those before the last truncate of their partition are deleted.
    """
    shown = ", ".join(f"{_shown(types, column['name'])} AS {column['name']}" for column in table["columns"])
    key = ", ".join(_key(name) for name in table["key"])
    return (
        f"SELECT {shown}, `exact.Exact.after` AS exact FROM (SELECT *,"
        f" row_number() OVER (PARTITION BY {key} ORDER BY place DESC) AS back,"
        f" maxIf(place, op = 't') OVER (PARTITION BY partition) AS truncated FROM {table['name']})"
        " WHERE back = 1 AND op != 'd' AND place > truncated"
    )


def _key(name: str) -> str:
    """Return the expression of a key's column: the row before has the key of a deleted one."""
    sides = ("after", "before")
    return f"coalesce({', '.join(_of_side(side, name) for side in sides)})"


def _of_side(side: str, name: str) -> str:
    return f"toString(`{side}.Row.{name}`), nullIf(`exact.Exact.{side}`['{name}'], '')"


def _shown(types: Mapping[str, str], name: str) -> str:
    """Return the expression of a column as its users see it: a number with a point, and a date, as text."""
    value = f"`after.Row.{name}`"
    return f"toString({value})" if any(each in types[name] for each in ("Decimal", "Float", "Date")) else value


def _partitions(table: Mapping[str, Any]) -> dict[int, list[bytes]]:
    """Return the records' values in each partition, without tombstones."""
    found: dict[int, list[bytes]] = {}
    with Path(table["records"]).open(encoding="utf-8") as lines:
        for partition, _, _, value in map(json.loads, lines):
            if value is not None:
                found.setdefault(partition, []).append(base64.b64decode(value))
    return found


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
