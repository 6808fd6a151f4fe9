"""Configures the log: structured lines with tables, counts and positions; never a row's values, never a secret.

JSON lines, or columns on a terminal. Field names are the constants below, so that a search for one finds every line
with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from infra.service.terminal import colored
from schemas.errors import printable
from schemas.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import structlog

    from infra.settings.model import LogSettings

SOURCE: Final = "source"
TABLE: Final = "table"
TOPIC: Final = "topic"
PARTITION: Final = "partition"
OFFSET: Final = "offset"
MIGRATION: Final = "migration"
POSITION: Final = "position"
ROWS: Final = "rows"
REASON: Final = "reason"

_LEVELS: Final = ("debug", "info", "warning", "error")


class _Wanted:
    """What `configure` was last called with, until a line is logged: many commands log nothing, and import no more."""

    def __init__(self) -> None:
        self._wanted: tuple[bool, str] | None = None
        self.has_debug = False
        """Whether everything is to be logged; only where that was asked for."""

    def set(self, as_json: bool, level: str) -> None:
        self._wanted = as_json, level
        self.has_debug = level == "debug"

    def apply(self) -> None:
        if self._wanted is not None:
            _configure(*self._wanted)
            self._wanted = None


_WANTED: Final = _Wanted()


def to_standard_error() -> None:
    """Send the log to standard error until a command has read the settings; never among what it prints.

    The level is that of the setting's variable, which `--verbose` sets.
    """
    level = os.environ.get("HEADRACE_LOG__LEVEL", "")
    _WANTED.set(not sys.stderr.isatty(), level if level in _LEVELS else "info")


def configure(settings: LogSettings, *, json: bool | None = None) -> None:
    """Send the log to standard error: JSON lines, or columns if standard error is a terminal."""
    _WANTED.set(json if json is not None else not sys.stderr.isatty(), settings.level)


def _configure(as_json: bool, level: str) -> None:
    import logging  # noqa: PLC0415 - as below

    import structlog  # noqa: PLC0415 - it takes longer than the start of a command that logs nothing

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
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _printable(_logger: object, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters in strings; JSON, and repr for other values, do so themselves."""
    return {
        name: printable(value) if isinstance(value, str) and name != "exception" else value
        for name, value in fields.items()
    }


@dataclass(frozen=True)
class Log:
    """A logger that adds `fields` to every line."""

    fields: Mapping[str, object]

    def debug(self, event: str, **fields: object) -> None:
        if _WANTED.has_debug:
            self._to().debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        self._to().info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self._to().warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._to().error(event, **fields)

    def _to(self) -> structlog.typing.FilteringBoundLogger:
        import structlog  # noqa: PLC0415 - as above

        _WANTED.apply()
        logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**self.fields)
        return logger


def get(**fields: object) -> Log:
    """Return a logger that adds `fields` to every line."""
    return Log(fields)
