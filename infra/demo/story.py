"""Runs `headrace demo`: real servers, real processes, four migrations, and a proof of each."""

from __future__ import annotations

import time
from contextlib import ExitStack

from rich.table import Table

from infra.cli import tables
from infra.demo.gitservers import Gitservers
from infra.demo.registry import Registry
from infra.demo.resets import Resets
from infra.demo.stage import Act, Stage
from infra.demo.storages import Storages
from infra.stack import embedded_stack


def run_demo(rows: int) -> None:
    """Run it with `rows` container repositories; raises ProofFailed if a claim is false."""
    console = tables.console(highlight=False)
    began = time.monotonic()
    summary = Table(title="headrace demo: what was proven", title_justify="left", show_header=False)
    with ExitStack() as held:
        starting = time.monotonic()
        with console.status("starting Kafka and PostgreSQL"):
            stack = held.enter_context(embedded_stack())
        console.print(f"Kafka and PostgreSQL started ({time.monotonic() - starting:.1f} s)")
        # Below the stack's own directory, which is removed when this process ends, however it ends.
        place = stack.directory / "demo"
        place.mkdir()
        stage = Stage(console, stack, place)
        held.callback(stage.close)
        acts: list[Act] = [Resets(stage, rows), Registry(stage), Storages(stage), Gitservers(stage)]
        stage.configure(acts)
        for act in acts:
            for line in act.play():
                summary.add_row(*line)
            summary.add_section()
    summary.add_row("total", f"{time.monotonic() - began:.0f} s; nothing is left behind")
    console.print(summary)
