"""Reads topics with Flink SQL, format `debezium-avro-confluent`, in a JVM of its own, up to their ends.

`python -m tests.interop.read_flink REQUEST`. The rows that remain are those of the changelog of `SELECT * FROM table`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jpype

_TYPES: Final = {
    "boolean": "BOOLEAN",
    "int": "INT",
    "long": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "text": "STRING",
    "uuid": "STRING",
    "date": "DATE",
    "time": "BIGINT",
    "timestamp": "BIGINT",
    "timestamptz": "BIGINT",
}
"""Kind of column → the type to declare."""


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    jpype.startJVM(request["jvm"], *request["options"], classpath=request["classpath"], convertStrings=True)
    settings = jpype.JClass("org.apache.flink.table.api.EnvironmentSettings").newInstance().inStreamingMode().build()
    environment = jpype.JClass("org.apache.flink.table.api.TableEnvironment").create(settings)
    environment.getConfig().set("parallelism.default", "1")
    environment.getConfig().set("table.exec.source.cdc-events-duplicate", "true")
    types: dict[str, dict[str, str]] = {}
    rows = {table["name"]: _read(environment, request, table, types) for table in request["tables"]}
    Path(request["answer"]).write_text(json.dumps({"types": types, "rows": rows}), encoding="utf-8")


def _read(
    environment: Any, request: Mapping[str, Any], table: Mapping[str, Any], types: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    environment.executeSql(_declared(request, table))
    result = environment.executeSql(f"SELECT * FROM {table['name']}")
    schema = result.getResolvedSchema()
    names = [str(name) for name in schema.getColumnNames()]
    shown = [str(type_).removesuffix(" NOT NULL") for type_ in schema.getColumnDataTypes()]
    types[table["name"]] = dict(zip(names, shown, strict=True))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    changes = result.collect()
    while changes.hasNext():
        change = changes.next()
        row = {name: _reported(change.getField(place)) for place, name in enumerate(names)}
        key = tuple(row[name] for name in table["key"])
        match str(change.getKind().shortString()):
            case "+I" | "+U":
                rows[key] = row
            case _:
                rows.pop(key, None)
    changes.close()
    return list(rows.values())


def _declared(request: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Return the statement that declares the table."""
    columns = [f"`{column['name']}` {_type(column)}" for column in table["columns"]]
    options = {
        "connector": "kafka",
        "topic": table["topic"],
        "scan.startup.mode": "earliest-offset",
        "scan.bounded.mode": "latest-offset",
        "properties.bootstrap.servers": request["bootstrap"],
        "properties.isolation.level": "read_committed",
        "format": "debezium-avro-confluent",
        "debezium-avro-confluent.url": request["registry"],
    }
    listed = ", ".join(f"'{name}' = '{value}'" for name, value in options.items())
    columns.append(f"PRIMARY KEY ({', '.join(table['key'])}) NOT ENFORCED")
    return f"CREATE TABLE {table['name']} ({', '.join(columns)}) WITH ({listed})"


def _type(column: Mapping[str, Any]) -> str:
    if column["kind"] == "decimal":
        return f"DECIMAL({column['precision']}, {column['scale']})"
    return _TYPES[column["kind"]]


def _reported(value: Any) -> Any:
    """Return a Java object as its users see it: every number, and a date, as text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, jpype.JClass("java.lang.Boolean")):
        return bool(value)
    if isinstance(value, jpype.JClass("java.math.BigDecimal")):
        return str(value.toPlainString())
    return str(value.toString())


if __name__ == "__main__":
    main()
