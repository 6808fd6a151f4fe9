"""Builds the compiled codec with AddressSanitizer and UndefinedBehaviorSanitizer, for its tests and for fuzzing.

`python -m tests.schemas.codec.sanitized` runs the codec's tests on that build (`make test SANITIZE=1`).
With clang its coverage guides the mutations, too: atheris brings the runtime that clang's checks and libFuzzer share.
With gcc, whose runtime replaces libFuzzer's hooks, inputs are mutations of the kept ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import UsageError
from tests.schemas.codec.another_build import VARIABLE

_BUILD: Final = Path("build/sanitized")
_FLAGS: Final = ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
_CHECKS: Final = "-fsanitize=address,undefined"
_OPTIONS: Final = {
    # Python does not free memory before the process ends, and a wrong length may request too much.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:malloc_context_size=0:quarantine_size_mb=4",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Python's own allocator would hide reads past an object's end.
    "PYTHONMALLOC": "malloc",
}


@dataclass(frozen=True)
class Sanitized:
    """A build of the codec, and the environment that a process needs to load it."""

    module: Path
    environment: Mapping[str, str]
    guided: bool


def build() -> Sanitized:
    """Compile the codec with the sanitizers. Raises UsageError if no compiler here can."""
    runtime = _atheris_runtime()
    if (
        runtime is not None
        and shutil.which("clang")
        and (module := _compiled("clang", f"{_CHECKS},fuzzer-no-link")) is not None
    ):
        return Sanitized(module, {**_OPTIONS, "LD_PRELOAD": str(runtime)}, guided=True)
    if shutil.which("gcc") and (module := _compiled("gcc", _CHECKS)) is not None:
        libraries = [_library("gcc", name) for name in ("libasan.so", "libubsan.so")]
        return Sanitized(module, {**_OPTIONS, "LD_PRELOAD": ":".join(libraries)}, guided=False)
    raise UsageError(
        "no compiler here builds the codec with the sanitizers",
        remedy="install gcc, or clang with its compiler-rt, and Python's headers; or leave SANITIZE=1 out",
    )


def _atheris_runtime() -> Path | None:
    spec = importlib.util.find_spec("atheris")
    if spec is None or spec.origin is None:
        return None
    runtime = Path(spec.origin).parent.parent / "asan_with_fuzzer.so"
    return runtime if runtime.exists() else None


def _compiled(compiler: str, checks: str) -> Path | None:
    _BUILD.mkdir(parents=True, exist_ok=True)
    module = _BUILD / f"_compiled.{compiler}{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = map(str, sorted(Path("schemas/codec/extension").glob("*.c")))
    flags = ["-shared", "-fPIC", checks, *_FLAGS, f"-I{sysconfig.get_path('include')}"]
    command = [compiler, *flags, *sources, "-o", str(module)]
    return module if subprocess.run(command, check=False).returncode == 0 else None


def _library(compiler: str, name: str) -> str:
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_tests(sanitized: Sanitized, arguments: Sequence[str], log: Path | None = None) -> int:
    """Run pytest with these arguments on a sanitized build, with its output in `log`; return its exit code."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.schemas.codec.another_build", *arguments]
    environment = {**os.environ, **sanitized.environment, VARIABLE: str(sanitized.module.absolute())}
    with contextlib.ExitStack() as opened:
        output = None if log is None else opened.enter_context(log.open("wb"))
        return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode


if __name__ == "__main__":
    sys.exit(run_tests(build(), sys.argv[1:] or ["tests/schemas"]))
