"""The extension as a module: compiled without warnings, built from all of its files, and imported more than once."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from schemas.codec import implementation
from schemas.events import UNCHANGED

CHECKOUT = Path(__file__).parents[3]
EXTENSION = CHECKOUT / "schemas/codec/extension"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
HEADERS = Path(sysconfig.get_path("include")) / "Python.h"

needs_compiled = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")


@pytest.mark.skipif(not COMPILERS or not HEADERS.exists(), reason="no C compiler, or no headers of Python's, here")
@pytest.mark.parametrize("source", sorted(path.name for path in EXTENSION.glob("*.c")))
@pytest.mark.parametrize("compiler", COMPILERS)
def test_codec_compiles_without_warnings(compiler: str, source: str, tmp_path: Path) -> None:
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Werror"]
    if source == "module.c":
        strict.remove("-Wmissing-prototypes")  # Python's headers do not declare PyInit__compiled
    target = ["-fPIC", f"-I{HEADERS.parent}", "-c", str(EXTENSION / source), "-o", str(tmp_path / "codec.o")]
    compiled = subprocess.run([compiler, *strict, *target], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr


def test_a_build_knows_all_of_its_files() -> None:
    """A header that a build does not depend on leaves an outdated module in a checkout."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    (module,) = project["tool"]["setuptools"]["ext-modules"]
    for kind, pattern in (("sources", "*.c"), ("depends", "*.h")):
        assert module[kind] == sorted(str(path.relative_to(CHECKOUT)) for path in EXTENSION.glob(pattern))


def imported_again() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas.codec._compiled", implementation.compiled.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_of(module: Any) -> Any:
    def refused(*arguments: object) -> object:
        raise LookupError(arguments)

    text = (5, 0, 0, 0, 0, False, True, False)
    return module.Plan((text,), (0,), b"h", b"\0", (b"\x02a",), (refused,) * 5)


@needs_compiled
def test_a_second_import_is_a_module_of_its_own() -> None:
    first, second = implementation.compiled, imported_again()
    assert second is not first
    for name in ("Plan", "Reader", "Row"):
        assert getattr(second, name) is not getattr(first, name)
    row, _ = first.tuple_row(b"t\0\0\0\x01x", 0, 1)
    assert type(row) is first.Row
    assert plan_of(first).key(row) == b"h\x02x"
    with pytest.raises(LookupError):  # not a row of this module's: left to Python
        plan_of(second).key(row)
    assert list(second.tuple_row(b"u", 0, 1)[0]) == [UNCHANGED]


@needs_compiled
def test_objects_outlive_their_module_which_is_then_forgotten() -> None:
    module = imported_again()
    kept, plan = module.tuple_row(b"u", 0, 1)[0], plan_of(module)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert list(kept) == [UNCHANGED]
    assert plan.key([b"x"]) == b"h\x02x"
    assert gone() is not None
    del kept, plan
    gc.collect()
    assert gone() is None


@needs_compiled
def test_objects_in_a_cycle_with_their_module_are_forgotten() -> None:
    module: Any = imported_again()
    module.plan, module.reader = plan_of(module), module.Reader(())
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@needs_compiled
def test_rows_are_made_by_the_module_alone_and_types_do_not_change() -> None:
    with pytest.raises(TypeError, match="cannot create"):
        implementation.compiled.Row()
    for name in ("Plan", "Reader", "Row"):
        with pytest.raises(TypeError, match="immutable"):
            getattr(implementation.compiled, name).added = 1


_IN_AN_INTERPRETER = """
import sys
sys.path[:] = {path!r}
from schemas.codec import implementation
from schemas.codec.encoder import Encoder
from schemas.events import UNCHANGED, Column, Origin, Relation
assert implementation.name == "C"
relation = Relation(1, "public", "t", "d", (Column("id", 20), Column("note", 25)), ("id",))
encoder = Encoder(relation, "gitlab_main", ["id"], origin=Origin("main", "main"), value_schema_id=7, key_schema_id=8)
key, value = encoder.change(b"", 0, 0, [b"1", UNCHANGED])
assert (key, value) == (b"\\0\\0\\0\\0\\x08\\x02", b"\\0\\0\\x02\\x08note\\0\\0\\x02\\x02\\x02\\0\\0"), (key, value)
"""


@needs_compiled
def test_codec_works_in_several_interpreters_of_a_process(tmp_path: Path) -> None:
    interpreters: Any = None
    for name in ("_interpreters", "_xxsubinterpreters"):  # from Python 3.13 on, and before
        with contextlib.suppress(ImportError):
            interpreters = interpreters or importlib.import_module(name)
    if interpreters is None:
        pytest.skip("this Python has no module for interpreters")
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys, {interpreters.__name__} as interpreters\n"
        f"code = {_IN_AN_INTERPRETER.format(path=[str(CHECKOUT), *sys.path])!r}\n"
        "exec(code)\n"
        "for _ in range(3):\n"
        "    made = interpreters.create()\n"
        "    failed = interpreters.run_string(made, code)\n"
        "    assert failed is None, failed\n"
        "    interpreters.destroy(made)\n"
        "exec(code)\n"
        "print('done')\n",
        encoding="utf-8",
    )
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
