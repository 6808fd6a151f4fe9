"""The command `demo`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Annotated, NoReturn

import typer

from infra.demo.story import tell


def demo(
    rows: Annotated[
        int, typer.Option(min=100, max=50_000_000, help="Rows of container_repositories to begin with.")
    ] = 1_000_000,
) -> None:
    """Show the whole story on real servers, and leave nothing behind.

    Starts its own Kafka and PostgreSQL, builds a GitLab-shaped database, streams it into topics while an application
    goes on writing, runs the migration `skip_resets` with two consumers, kills one with SIGKILL half-way, replays the
    topics, and proves by SQL that exactly the right rows changed, each once. Then the other three: a column in three
    releases (`status_backfills`), walks of two git storages (`missing_records`), and 200 git repositories that move
    between three nodes while a consumer is killed (`rehash_moves`), each with its proof.
    """
    # A TERM must unwind like Ctrl-C, so that what was started is stopped.
    signal.signal(signal.SIGTERM, _interrupt)
    tell(rows)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


COMMANDS: tuple[Callable[..., None], ...] = (demo,)
