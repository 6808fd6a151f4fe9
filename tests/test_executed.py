"""The table of `make coverage`."""

from __future__ import annotations

from typing import Any

from tests.executed import Executed, by_subpackage


def summary(lines: int, of_lines: int, branches: int = 0, of_branches: int = 0) -> dict[str, Any]:
    counts = {"covered_lines": lines, "num_statements": of_lines}
    return {"summary": {**counts, "covered_branches": branches, "num_branches": of_branches}}


def test_modules_of_a_subpackage_are_counted_together_with_the_least_executed_first() -> None:
    files = {
        "headrace.py": summary(10, 10),
        "schemas/codec.py": summary(3, 4),
        "infra/stack/containers.py": summary(1, 5, 1, 2),
        "infra/stack/brokers/jars.py": summary(2, 2),
        "infra/cli/options.py": summary(0, 0),
    }
    assert by_subpackage({"files": files}) == [
        Executed("infra/stack", 4, 9),
        Executed("schemas", 3, 4),
        Executed("headrace.py", 10, 10),
    ]
