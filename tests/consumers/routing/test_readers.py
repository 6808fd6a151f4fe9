"""The vectors and the reference readers in Go and Ruby of docs/how-to/routing.md match the router."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import xxhash

from consumers.gitserver.tables import OWN_TABLES
from consumers.routing import lookup
from consumers.routing.lookup import Cursor, Reading, homes
from consumers.routing.placement import Placement, md5_home, normalised, order_key, partition_of, rendezvous_home
from tests.conftest import Database
from tests.readers import NotInstalled, build_go

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "how-to" / "routing.md").read_text(encoding="utf-8")
VECTORS: dict[str, Any] = json.loads((DOCS / "reference" / "readers" / "vectors.json").read_text(encoding="utf-8"))
NODES = VECTORS["nodes"]

Question = Mapping[str, Any]

PIECES = [
    *("github.com", "GitHub.com", "gitlab.com", "GITLAB.Example", "DELETED-1.2-", "DELETED-1-", ".git", "/", "//", "."),
    *(
        "..",
        "a",
        "B",
        "z-z",
        " ",
        "\u0130",
        "\u03a3",
        "\u039f\u0394\u039f\u03a3",
        "\u00c4\u00df",
        "\u0416",
        "\U0001f600",
        "x" * 40,
    ),
]
"""The parts of random names, to many of which every rule of the normal form applies."""


def answer(question: Question) -> dict[str, Any]:
    """Return headrace's own answer, in the form of the reference readers."""
    name, nodes = question["name"], question["nodes"]
    cursors = {
        row["partition"]: Cursor(None if row["upto"] is None else row["upto"].encode(), row["finished"])
        for row in question["cursors"]
    }
    return {
        "normal_form": normalised(name),
        "partition": partition_of(name),
        "md5": md5_home(name, nodes),
        "rendezvous": rendezvous_home(name, nodes),
        "homes": list(homes(Placement(tuple(nodes), question["pins"]), name, Reading(0.0, cursors))),
    }


def cursor(partition: int, upto: str | None, *, finished: bool = False) -> dict[str, Any]:
    return {"partition": partition, "upto": upto, "finished": finished}


def random_questions(seed: int, number: int) -> Iterable[Question]:
    chance = random.Random(seed)

    def name() -> str:
        return "".join(chance.choices(PIECES, k=chance.randrange(7)))

    for _ in range(number):
        asked = name()
        upto = chance.choice([None, "", normalised(asked), normalised(name())])
        yield {
            "name": asked,
            "nodes": [f"node-{each}:{chance.randrange(10**6)}" for each in range(chance.randrange(1, 9))],
            "pins": {},
            "cursors": [cursor(partition_of(asked), upto, finished=chance.random() < 0.1)],
        }


def test_each_vector_matches_the_formulas() -> None:
    assert [f"{xxhash.xxh64_intdigest(node.encode()):016x}" for node in NODES] == VECTORS["node_xxh64"]
    for each in VECTORS["placements"]:
        key = order_key(each["name"])
        assert each == {
            "name": each["name"],
            "normal_form": key.decode(),
            "crc32": f"{zlib.crc32(key):08x}",
            "partition": partition_of(each["name"]),
            "md5_first_8": hashlib.md5(key, usedforsecurity=False).hexdigest()[:16],
            "xxh64": f"{xxhash.xxh64_intdigest(key):016x}",
            "md5": md5_home(each["name"], NODES),
            "rendezvous": rendezvous_home(each["name"], NODES),
        }
    for each in VECTORS["homes"]:
        assert answer({"nodes": NODES, **each})["homes"] == each["homes"], each["case"]
    assert {tuple(each["homes"]) for each in VECTORS["homes"]} >= {(NODES[0], NODES[2]), (NODES[2], NODES[0])}


def test_document_has_the_vectors_and_the_query() -> None:
    (table,) = re.findall(r"<!-- vectors -->\n.*?\n.*?\n(.*?)<!-- end -->", GUIDE, re.DOTALL)
    shown = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    expected = {each["name"]: each for each in VECTORS["placements"]}
    assert len(shown) > 20
    for name, normal, crc, partition, md5, xxh, *numbers in shown:
        each = expected["" if name == "(empty)" else name]
        assert (normal, crc, partition, md5, xxh) == (
            each["normal_form"] or "(empty)",
            each["crc32"],
            str(each["partition"]),
            each["md5_first_8"],
            each["xxh64"],
        )
        assert [NODES[int(number)] for number in numbers] == [each["md5"], each["rendezvous"]]
    assert f"```sql\n{lookup._QUERY}\n```" in GUIDE
    assert f"{zlib.crc32(b'123456789'):08x}" in GUIDE


def program(language: str, directory: Path) -> list[str]:
    """Return the command of a reference reader; skip the test if its language is not installed."""
    if language == "go":
        try:
            return build_go("answer", directory)
        except NotInstalled as error:
            pytest.skip(str(error))
    tool = shutil.which("ruby")
    if tool is None:
        pytest.skip("ruby is not installed")
    return [tool, str(DOCS / "reference" / "readers" / "routing.rb")]


def ask(command: Sequence[str], questions: Sequence[Question]) -> list[dict[str, Any]]:
    asked = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(command, input=asked.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


@pytest.mark.stack
@pytest.mark.parametrize("language", ["go", "ruby"])
def test_reference_reader_matches_the_router(language: str, tmp_path: Path, database: Database) -> None:
    connection = database.connect()
    connection.execute("CREATE SCHEMA headrace")
    connection.execute(OWN_TABLES.encode())
    names = [each["name"] for each in VECTORS["placements"]]
    connection.execute(
        "INSERT INTO headrace.rehash_cursors VALUES"
        " (3, 'github.com/owner/repo', false), (12, NULL, true), (1, NULL, false)"
    )
    live = [{"name": name, "nodes": NODES, "pins": {}, "cursors": rows(connection)} for name in names]
    cases = [{"nodes": NODES, **each} for each in VECTORS["homes"]]
    questions = [*live, *cases, *random_questions(13, 3000)]
    answers = ask(program(language, tmp_path), questions)
    assert len(answers) == len(questions)
    for question, found in zip(questions, answers, strict=True):
        assert found == answer(question), question


def rows(connection: psycopg.Connection) -> list[dict[str, Any]]:
    """Return the cursors by the document's query."""
    (query,) = re.findall(r"```sql\n(SELECT partition.*?)```", GUIDE, re.DOTALL)
    return [
        cursor(partition, upto, finished=finished) for partition, upto, finished in connection.execute(query.encode())
    ]
