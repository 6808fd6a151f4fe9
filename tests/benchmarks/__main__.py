"""`python -m tests.benchmarks`: measures headrace and its peers in turn on the same servers, as a table of ratios.

Writes build/bench.json after each benchmark. Exit code 1 if a benchmark failed to run; a missed target is a result,
not an error.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import psycopg
from confluent_kafka import KafkaException
from rich.console import Console

from infra.stack import embedded_stack
from schemas.errors import HeadraceError
from tests.benchmarks import cases
from tests.benchmarks.bench import Bench
from tests.benchmarks.figures import Figure, table, write

_RESULT: Final = Path(__file__).parents[2] / "build" / "bench.json"
_FIRST: Final = ("snapshot", "catch_up", "latency")
"""Shown first; all others follow by name."""

Case = Callable[[Bench], Iterator[Figure]]


def benchmarks() -> dict[str, Case]:
    """Return the benchmarks in `cases`, by module name: each has a function `figures(bench)`."""
    names = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return {name: importlib.import_module(f"{cases.__name__}.{name}").figures for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested benchmarks; return the exit code."""
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of container_repositories")
    parser.add_argument("--only", help=f"comma-separated names from: {', '.join(known)}")
    parser.add_argument("--runs", type=int, default=3, help="runs per median")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown benchmark {unknown[0]}; known: {', '.join(known)}")
    if options.rows < 10_000 or options.runs < 1:
        parser.error("a benchmark needs at least 10,000 rows and one run")
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(soft_wrap=True)
    try:
        return _run(console, {name: known[name] for name in chosen}, options.rows, options.runs)
    except HeadraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1


def _run(console: Console, chosen: dict[str, Case], rows: int, runs: int) -> int:
    found: list[Figure] = []
    failed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as place, embedded_stack() as stack:
        bench = Bench(stack, Path(place), console, rows=rows, runs=runs)
        for name, figures in chosen.items():
            bench.say(f"[bold]{name}[/bold]")
            try:
                for figure in figures(bench):
                    found.append(figure)
                    write(found, _RESULT)
            except (HeadraceError, KafkaException, psycopg.Error) as error:
                failed = 1
                print(f"error: {name}: {' '.join(str(error).split())}", file=sys.stderr)
    Console(width=max(console.width, 130)).print(table(found))
    console.print(f"{time.monotonic() - began:.0f} s; results in {_RESULT.relative_to(_RESULT.parents[1])}")
    return failed


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
