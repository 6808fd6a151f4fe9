"""Walks many repositories into Kafka: speed, memory, and completeness.

`python -m tests.benchmarks.walk [--repositories N]` prints one JSON object a line: name, value, unit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w

from infra.settings.model import Settings
from infra.stack import embedded_stack
from producers.walk.directory import walk_directory
from producers.walk.run import storage_walk_topic
from tests.producers.folding import fold, read_topic
from tests.producers.storages import hashed, repository


def report(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 1), "unit": unit}), flush=True)


def directories(storage: Path) -> int:
    """Return the number of directories that a walk of the storage opens."""
    return sum(1 for path, _, files in os.walk(storage) if Path(path).name not in ("objects", "refs") or files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repositories", type=int, default=100_000)
    count = parser.parse_args().repositories
    with tempfile.TemporaryDirectory(prefix="headrace-walk-") as made, embedded_stack() as stack:
        storage = Path(made, "storage")
        for project in range(count):
            repository(storage, hashed(project))
        opened = directories(storage)
        started = time.perf_counter()
        found = sum(1 for _ in walk_directory(str(storage)))
        seconds = time.perf_counter() - started
        report("walk alone: repositories", found / seconds, "repositories/s")
        report("walk alone: directories", opened / seconds, "directories/s")

        values: dict[str, Any] = {
            "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
            "virtual_storages": {
                "default": {
                    "database": "praefect",
                    "primary": "gitaly-0",
                    "storages": {"gitaly-0": {"path": str(storage)}},
                }
            },
        }
        config = Path(made, "headrace.toml")
        config.write_text(tomli_w.dumps(values))
        settings = Settings(**values)
        for run in ("first", "again"):
            started = time.perf_counter()
            child = subprocess.Popen([sys.executable, "-m", "headrace", "produce", "default", "--config", str(config)])
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - started
            if child.returncode:
                sys.exit(f"produce ended with {child.returncode}")
            report(f"headrace produce, {run}, from start to end", count / seconds, "repositories/s")
            report(f"headrace produce, {run}, peak memory", usage.ru_maxrss / 1024, "MB")
        rows = list(fold(read_topic(settings, storage_walk_topic(settings))).values())
        kinds = Counter(str(row["kind"]) for row in rows)
        if kinds != {"repository": count, "end": settings.kafka.partitions}:
            sys.exit(f"the topic has {dict(kinds)}; expected {count} repositories and one end per partition")
        if {row["relative_path"] for row in rows if row["kind"] == "repository"} != set(map(hashed, range(count))):
            sys.exit("the topic's repositories differ from the storage's")
        report("rows of repositories", kinds["repository"], "rows")


if __name__ == "__main__":
    main()
