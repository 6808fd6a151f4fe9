"""A file that cannot be used is an entry with its place; other files are found as usual."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from consumers.contract.discovery import BUILT_IN, Discovered, discover, in_package
from tests.consumers.contract.authors import BROKEN, sound

Find = Callable[[Mapping[str, str]], Discovered]


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """A function that writes files (stem → text) into a package and returns what discovery finds."""
    package = tmp_path / "authors_own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(files: Mapping[str, str]) -> Discovered:
        for stem, text in files.items():
            (package / f"{stem}.py").write_text(text)
        importlib.invalidate_caches()
        return discover(in_package(importlib.import_module("authors_own"), BUILT_IN))

    yield found
    for name in [name for name in sys.modules if name.startswith("authors_own")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_reported_and_hides_no_other(find: Find, name: str) -> None:
    text, said = BROKEN[name]
    found = find({name.lower(): text, "lower_emails": sound("lower_emails")})
    assert list(found.migrations) == ["lower_emails"]
    (entry,) = found.broken
    assert entry == name
    assert said in str(found.broken[entry])
    assert "\n" not in str(found.broken[entry])


def test_two_migrations_with_same_name_are_refused_with_both_places(find: Find) -> None:
    found = find({"first": sound("same"), "second": sound("same"), "third": sound("other")})
    assert list(found.migrations) == ["other"]
    said = str(found.broken["same"])
    assert "second.py:7: class Lowers has the same name, same, as class Lowers in " in said
    assert "first.py:7" in said
    assert "rename one of them" in said


def test_two_migrations_a_base_class_and_an_import_are_valid(find: Find) -> None:
    two = sound("one") + sound("two").partition("class Lowers")[2].join(["\n\nclass Others", ""])
    imported = "from headrace import Migration\n\n\n"
    base = f"{imported}class Base(Migration):\n    gitlab_schema = 'gitlab_main'\n"
    found = find({"both": two, "base": base, "imports": "from authors_own.both import Lowers\n"})
    assert sorted(found.migrations) == ["one", "two"]
    assert found.broken == {}
