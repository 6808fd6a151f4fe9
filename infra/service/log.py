"""Configures the log: structured lines with tables, counts and positions; never a row's values, never a secret.

JSON lines, or columns on a terminal. Field names are the constants below, so that a search for one finds every line
with it.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

from infra.service.terminal import colored
from infra.settings.model import LogSettings
from schemas.errors import printable

SOURCE: Final = "source"
TABLE: Final = "table"
TOPIC: Final = "topic"
PARTITION: Final = "partition"
OFFSET: Final = "offset"
MIGRATION: Final = "migration"
POSITION: Final = "position"
ROWS: Final = "rows"
REASON: Final = "reason"

Log = structlog.typing.FilteringBoundLogger


def configure(settings: LogSettings, *, json: bool | None = None) -> None:
    """Send the log to standard error: JSON lines, or columns if standard error is a terminal."""
    as_json = json if json is not None else not sys.stderr.isatty()
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if as_json
        else [_printable, structlog.dev.ConsoleRenderer(colors=colored(sys.stderr))]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _printable(_logger: object, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters in strings; JSON, and repr for other values, do so themselves."""
    return {
        name: printable(value) if isinstance(value, str) and name != "exception" else value
        for name, value in fields.items()
    }


def get(**fields: object) -> Log:
    """Return a logger that adds `fields` to every line."""
    log: Log = structlog.get_logger(**fields)
    return log
