"""The public API: what an import of it loads, and its names for type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

CHECKOUT = Path(__file__).parents[1]
STUBS = CHECKOUT / "infra" / "stubs" / "headrace-stubs" / "__init__.pyi"


def loaded(program: str) -> set[str]:
    """Return the modules that are loaded after `program`."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(ended.stdout.split())


def test_import_loads_only_what_is_used() -> None:
    assert loaded("import headrace").isdisjoint({"typer", "psycopg", "pydantic", "confluent_kafka", "consumers"})
    events = loaded("from headrace import ChangeEvent, Op, Skip")
    assert events.isdisjoint({"typer", "psycopg", "pydantic", "confluent_kafka"})
    assert loaded("from headrace import Migration").isdisjoint({"typer", "confluent_kafka", "producers"})


def test_every_name_is_there_and_nothing_else_is() -> None:
    for name in headrace.__all__:
        assert getattr(headrace, name) is not None
    assert dir(headrace) == sorted(headrace.__all__)
    with pytest.raises(AttributeError, match="module 'headrace' has no attribute 'Sifting'"):
        getattr(headrace, "Sifting")  # noqa: B009 - mypy knows that it has none


def test_stubs_have_the_same_names_from_the_same_modules() -> None:
    def imports(file: Path) -> set[tuple[str | None, str]]:
        nodes = (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom))
        return {(node.module, alias.name) for node in nodes for alias in node.names}

    public = {(module, name) for module, name in imports(CHECKOUT / "headrace.py") if name in headrace.__all__}
    assert public == imports(STUBS)
    assert public == {(module, name) for module, names in headrace._MODULES.items() for name in names}
