"""Writes a settings file that leads to the servers of `headrace up`."""

from __future__ import annotations

import os
from pathlib import Path

import tomli_w

from infra.stack.background import Record
from schemas import formats
from schemas.errors import Refused

_COMMENT = """\
# Settings for the servers of `headrace up`, whose ports may change when they are started again.

# plugin_paths = ["./migrations"]
"""


def require_free(path: Path) -> None:
    """Raise Refused if the file exists; called before the servers are started."""
    if path.exists():
        raise Refused(f"{path} exists already", remedy="choose another with --config, or edit that one")


def write_settings(path: Path, record: Record, *tables: str) -> None:
    """Write a settings file with the addresses of the servers, whose database `main` captures these tables.

    Without any it captures container repositories. The rest has its defaults. Readable only by its owner, since the dsn
    has a password. Raises Refused for a file that exists or cannot be written.
    """
    document = {
        formats.VERSION_MARK: formats.SETTINGS.version,
        "kafka": {"bootstrap_servers": record.bootstrap_servers},
        "databases": {
            "main": {
                "dsn": record.dsn,
                "gitlab_schemas": ["gitlab_main"],
                "tables": list(tables) or ["public.container_repositories"],
            }
        },
    }
    require_free(path)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(_COMMENT + tomli_w.dumps(document))
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}; the servers are up") from error
