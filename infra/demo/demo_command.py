"""The command `demo`."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated, NoReturn

import typer

from infra.stack.extra import require_stack


def demo(
    rows: Annotated[
        int, typer.Option(min=100, max=50_000_000, help="Initial rows of container_repositories.")
    ] = 1_000_000,
) -> None:
    """Run all migrations on temporary servers, with proofs.

        headrace demo --rows 100000

    Starts its own Kafka and PostgreSQL, builds a GitLab-shaped database, streams it into topics while an application
    writes, runs the migration `skip_resets` with two consumers, kills one with SIGKILL half-way, replays the topics,
    and proves by SQL that exactly the right rows changed, each once. Then it runs the other three, each with a proof: a
    column in three releases (`status_backfills`), walks of two git storages (`missing_records`), and moves of 200 git
    repositories between three nodes while a consumer is killed (`rehash_moves`). Nothing is left behind.
    """
    require_stack()
    from infra.demo.story import run_demo
    from infra.service import interrupts

    # SIGTERM must unwind like Ctrl-C, so that the servers are stopped.
    signal.signal(signal.SIGTERM, _interrupt)
    with interrupts.finishing():  # its servers are stopped
        run_demo(rows)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
