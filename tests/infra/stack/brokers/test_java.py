"""Selection of the Java that runs Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack.brokers import java
from schemas.errors import UsageError


def fake_java(home: Path, version: str) -> Path:
    """Write a `java` that only knows its version, and prints it as old ones do: on standard error."""
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("said", "feature"), [("1.8.0_392", 8), ("17.0.9", 17), ("25", 25)])
def test_version(tmp_path: Path, said: str, feature: int) -> None:
    assert java.java_version(fake_java(tmp_path / "jdk", said)) == feature


def test_there_is_one_here() -> None:
    version = java.java_version(java.find_java())
    assert version is not None
    assert version >= java.MINIMUM_VERSION


def test_java_home_is_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_java(tmp_path / "jdk", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert program in java.candidates()


def test_only_old_ones_is_an_error_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_java(tmp_path / "jdk", "11.0.2")
    monkeypatch.setattr(java, "candidates", lambda: [old])
    with pytest.raises(UsageError, match=r"java is 11\); install"):
        java.find_java()
