from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import benchmarks
from tests.benchmarks.debezium import pinned_debezium
from tests.benchmarks.figures import Figure, Target, write


@pytest.mark.parametrize(
    ("figure", "ratio", "met"),
    [
        (Figure("speed", 100, "rows/s", peer=20, target=Target(at_least=5, ratio=True)), 5.0, True),
        (Figure("speed", 99, "rows/s", peer=20, target=Target(at_least=5, ratio=True)), 4.95, False),
        (Figure("no peer", 99, "rows/s", target=Target(at_least=5, ratio=True)), None, None),
        (Figure("delay", 10, "ms", peer=40, target=Target(at_most=20), smaller=True), 4.0, True),
        (Figure("delay", 21, "ms", target=Target(at_most=20), smaller=True), None, False),
        (Figure("the same", 0.79, "x", target=Target(at_least=0.8, at_most=1.2)), None, False),
        (Figure("no target", 1, "s"), None, None),
        (Figure("nothing measured", 0, "s", peer=1, smaller=True), None, None),
    ],
)
def test_figure_has_ratio_and_verdict(figure: Figure, ratio: float | None, met: bool | None) -> None:
    assert (figure.ratio, figure.met) == (ratio, met)


def test_bench_json_has_its_documented_keys(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    write([Figure("speed", 123456.7, "rows/s", peer=20, target=Target(at_least=5, ratio=True))], path)
    assert json.loads(path.read_text()) == [
        {
            "name": "speed",
            "value": 123460.0,
            "unit": "rows/s",
            "peer": 20.0,
            "ratio": 6172.8,
            "target": "ratio >= 5",
            "met": True,
        }
    ]


def test_benchmarks_finds_every_case() -> None:
    names = list(benchmarks())
    files = {file.stem for file in (Path(__file__).parent / "cases").glob("*.py")}
    assert set(names) == files
    assert names[0] == "snapshot"


def test_debezium_is_pinned() -> None:
    jars = {jar.artifact: jar.version for jar in pinned_debezium()}
    assert jars["debezium-connector-postgres"] == "3.6.3.Final"
    assert jars["connect-runtime"] == jars["connect-json"] == "4.3.0"
