"""Reads GitLab's dictionary as the file of one table and of all, with the compiled part of PyYAML and without."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from unittest.mock import patch

import yaml

from infra.settings.gitlab_dictionary import GitlabDictionary, read_dictionary
from infra.settings.section import NAME_PATTERN
from schemas.errors import SettingsError
from tests.fuzz.parsers.target import Target, Violation, outcome

_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="headrace-fuzz-")
_FOLDER: Final = Path(_DIRECTORY.name)
_FILE: Final = _FOLDER / "projects.yml"
_LOADERS: Final = (yaml.CSafeLoader, yaml.SafeLoader)


def _run(data: bytes) -> None:
    _FILE.write_bytes(data)
    for loader in _LOADERS:
        with patch.object(yaml, "CSafeLoader", loader):
            for path in (_FILE, _FOLDER):
                read_dictionary.cache_clear()
                kind, found = outcome(SettingsError, read_dictionary, path)
                if kind == "refused" and "\n" in str(found):
                    raise Violation(f"a message of more than one line: {found!r}")
                if isinstance(found, GitlabDictionary):
                    _require_sound(found)


def _require_sound(found: GitlabDictionary) -> None:
    for name, label in found.current.items():
        if not name or not re.fullmatch(NAME_PATTERN, label):
            raise Violation(f"{name!r} belongs to {label!r}")


def _seeds() -> Iterator[bytes]:
    yield b"""---
table_name: projects
classes: &classes
- Project
description: |
  A place for code
feature_categories: [groups_and_projects]
again: *classes
sharding_key: {project_id: projects}
gitlab_schema: gitlab_main
"""
    yield b"view_name: 'postgres_partitions'\ngitlab_schema: \"gitlab_shared\"\n"
    yield b"projects: :gitlab_main\nci_builds: :gitlab_ci\n"
    yield b"a: !ruby/object:Foo b\n? c\n: d\n"


TARGET = Target(
    "GitLab's dictionary",
    _run,
    _seeds,
    dictionary=(b"gitlab_schema: ", b"table_name: ", b": :", b"- ", b"|\n", b"&a ", b"*a", b"!!", b"---\n", b"{", b"["),
    longest=1000,
)
