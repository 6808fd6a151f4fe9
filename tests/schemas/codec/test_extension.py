"""The compiled codec builds without a warning."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
HEADERS = Path(sysconfig.get_path("include")) / "Python.h"


@pytest.mark.skipif(not COMPILERS or not HEADERS.exists(), reason="no C compiler, or no headers of Python's, here")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_codec_compiles_without_warnings(compiler: str, tmp_path: Path) -> None:
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    command = [
        compiler,
        *strict,
        "-fPIC",
        f"-I{HEADERS.parent}",
        "-c",
        "schemas/codec/extension/module.c",
        "-o",
        str(tmp_path / "codec.o"),
    ]
    compiled = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
