"""Prints how much of each subpackage was executed, from the data of `make coverage`.

    python -m tests.executed

The worst come first; `coverage report --show-missing` has the lines, and `coverage html` the branches.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage


@dataclass(frozen=True, slots=True)
class Executed:
    """Lines and branches of a subpackage, as coverage.py counts them; branches count like lines."""

    name: str
    executed: int
    of: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.executed / self.of


def by_subpackage(report: Mapping[str, Any]) -> list[Executed]:
    """Return the subpackages of coverage.py's JSON report that have anything to execute, the least executed first."""
    executed, of = Counter[str](), Counter[str]()
    for file, found in report["files"].items():
        folders = Path(file).parts[:-1][:2]
        name = "/".join(folders) if folders else file
        counts = found["summary"]
        executed[name] += counts["covered_lines"] + counts["covered_branches"]
        of[name] += counts["num_statements"] + counts["num_branches"]
    return sorted((Executed(name, executed[name], of[name]) for name in +of), key=lambda each: (each.share, each.name))


def main() -> None:
    """Print a line for each subpackage, and one for all."""
    measured = coverage.Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.json"
        measured.json_report(outfile=str(file))
        found = by_subpackage(json.loads(file.read_text(encoding="utf-8")))
    every = Executed("all", sum(each.executed for each in found), sum(each.of for each in found))
    for each in (*found, every):
        print(f"{each.share:6.1%}  {each.executed:>6} of {each.of:>6}  {each.name}")


if __name__ == "__main__":
    main()
