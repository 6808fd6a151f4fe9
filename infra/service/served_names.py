"""Decides whether a request names this server as its host.

A web page could otherwise make a browser ask, under a name of its own that resolves to this address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[^\s:@/\[\]]{1,255})(?::\d{1,5})?").fullmatch


class ServedNames:
    """The host names of a server that listens on `address`: an IP address, localhost, `address` and `hosts`."""

    def __init__(self, address: str, hosts: Collection[str] = ()) -> None:
        self._names = frozenset(name.lower() for name in ("localhost", address, *hosts))

    def include(self, host: str) -> bool:
        """Whether a Host header names this server; its port is any, since a proxy may have another."""
        parsed = _HOST(host)
        if parsed is None:
            return False
        name = parsed[1].lower().rstrip(".")
        return name in self._names or _is_address(name.strip("[]"))


def is_loopback(address: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if address.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
