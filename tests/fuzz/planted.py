"""Faults of headrace put back, so that the fuzz of tables can show that it finds them."""

from __future__ import annotations


def plant(name: str) -> None:
    """Give this process a fault."""
    raise KeyError(name)
