"""Replaces the compiled codec by another build of it, before anything of headrace imports it.

As a plugin of pytest (`-p tests.schemas.codec.another_build`) it takes the build that the variable CODEC_BUILD names.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

import schemas.codec

VARIABLE: Final = "CODEC_BUILD"


def use(path: Path) -> None:
    """Install the build at `path` where headrace looks for it."""
    spec = importlib.util.spec_from_file_location("schemas.codec._compiled", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["schemas.codec._compiled"] = schemas.codec._compiled = module  # type: ignore[attr-defined]  # a module's attribute
    spec.loader.exec_module(module)


if VARIABLE in os.environ:
    use(Path(os.environ[VARIABLE]))
