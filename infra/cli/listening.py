"""Parses `--listen HOST:PORT`."""

from __future__ import annotations

import re
from typing import Final

from schemas.errors import UsageError

_LISTEN: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/@\[\]]+)):(?P<port>\d{1,5})").fullmatch


def listen_address(listen: str) -> tuple[str, int]:
    """Return address and port of `HOST:PORT` or `[IPv6]:PORT`; raises UsageError."""
    parsed = _LISTEN(listen)
    if parsed is None or int(parsed["port"]) > 65535:
        raise UsageError(f"--listen {listen} is no address", remedy="give HOST:PORT, such as 127.0.0.1:8081")
    return parsed["six"] or parsed["host"], int(parsed["port"])
