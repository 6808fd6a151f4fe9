"""The import order of packages, as `make lint` enforces it, and limits that keep modules readable.

The rules of pyproject.toml are asked about a copy of the source that has such imports.
"""

from __future__ import annotations

import ast
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("schemas", "infra", "producers", "consumers")
MODULES = 15
"""What a reader can take in at once, as a folder has them."""
_LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_an_import_against_the_order_is_refused_in_every_room(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    planted = set(wrong_imports())
    for number, (importer, imported) in enumerate(sorted(planted)):
        place = tmp_path / importer.replace(".", "/")
        file = place / f"planted{number}.py" if place.is_dir() else place.with_suffix(".py")
        with file.open("a", encoding="utf-8") as text:
            text.write(f"import {imported}\n")
    linted = subprocess.run(
        [sys.executable, "-c", _LINT, "--no-cache"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert linted.returncode == 1, linted.stderr
    refused = set(re.findall(r"([\w.]+?)(?:\.planted\d+)? -> ([\w.]+) ", " ".join(linted.stdout.split())))
    assert planted - refused == set()


def wrong_imports() -> Iterator[tuple[str, str]]:
    """Of each room, package or module of a contract: itself, and one it must not import, in its layer or above it."""
    rules = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    for rule in rules:
        if rule["type"] != "layers":
            continue
        for container in rule.get("containers", [""]):
            within = f"{container}." if container else ""
            layers = [[f"{within}{name.strip()}" for name in layer.split("|")] for layer in rule["layers"]]
            for higher, lower in itertools.pairwise(layers):
                yield from ((low, high) for low in lower for high in higher)
            for layer in layers:
                yield from ((one, other) for one in layer for other in layer if one != other)


def test_a_folder_can_be_taken_in_and_a_name_means_one_module() -> None:
    for package in PACKAGES:
        modules = [path for path in (CHECKOUT / package).rglob("*.py") if path.stem != "__init__"]
        folders = {path.parent for path in modules}
        names = [path.stem for path in modules] + [folder.name for folder in folders if folder.name != package]
        assert {name for name in names if names.count(name) > 1} == set(), package
        crowded = {
            str(folder.relative_to(CHECKOUT)) for folder in folders if len(list(folder.glob("*.py"))) > MODULES + 1
        }
        assert crowded == set(), package


LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8


def test_modules_functions_and_constructors_are_short() -> None:
    long: list[str] = []
    for path, text in sources():
        if text.count("\n") > LINES:
            long.append(f"{path} has more than {LINES} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES:
                    long.append(f"{path}: {node.name} has more than {FUNCTION_LINES} lines")
                parameters = len(node.args.args) + len(node.args.kwonlyargs)
                if node.name == "__init__" and parameters - 1 > PARAMETERS:
                    long.append(f"{path}:{node.lineno}: __init__ has more than {PARAMETERS} parameters")
    assert long == []


def test_modules_of_tests_are_short() -> None:
    modules = sorted((CHECKOUT / "tests").rglob("*.py"))
    assert [str(path) for path in modules if path.read_text(encoding="utf-8").count("\n") > LINES] == []


def test_attributes_are_set_in_the_constructor() -> None:
    """Of classes that inherit nothing of others; and nothing asks whether something is there."""
    late: list[str] = []
    for path, text in sources():
        tree = ast.parse(text)
        names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        late += [f"{path}:{name.lineno}: hasattr" for name in names if name.id == "hasattr"]
        for made in ast.walk(tree):
            if not isinstance(made, ast.ClassDef) or made.bases:
                continue
            declared = {ast.unparse(each.target) for each in made.body if isinstance(each, ast.AnnAssign)}
            assigned = {
                method.name: {
                    each.attr
                    for each in ast.walk(method)
                    if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
                    if isinstance(each.value, ast.Name) and each.value.id == "self"
                }
                for method in made.body
                if isinstance(method, ast.FunctionDef)
            }
            known = declared | assigned.get("__init__", set())
            late += [
                f"{path}: {made.name}.{name} is first set in {method}"
                for method, set_there in assigned.items()
                for name in sorted(set_there - known - assigned.keys())
            ]
    assert late == []


def sources() -> Iterator[tuple[Path, str]]:
    for package in (*PACKAGES, "headrace.py"):
        for path in sorted((CHECKOUT / package).rglob("*.py")) or [CHECKOUT / package]:
            yield path.relative_to(CHECKOUT), path.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(*wrong_imports(), sep="\n")
