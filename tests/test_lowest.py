"""The oldest packages that pyproject.toml accepts are those that `make lowest` runs the tests with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def test_floors_are_the_versions_of_make_lowest() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    found = [re.match(r"([\w-]+).*?>=([\d.]+)", each) for each in project["dependencies"]]
    floors = {each[1]: each[2] for each in found if each is not None}
    assert len(floors) == len(project["dependencies"]), "each has a floor"
    lines = (CHECKOUT / "tests" / "lowest_constraints.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if "==" in line)
    assert tried.pop("psycopg-binary") == tried["psycopg"]
    assert {name: parts(version) for name, version in tried.items()} == {
        name: parts(version) for name, version in floors.items()
    }


def parts(version: str) -> tuple[int, ...]:
    """Return a version without zeros at its end: 2.9 is 2.9.0."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", version).split(".")))
