"""Kafka's classes, parsed once."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

import pytest

from infra.stack.brokers.class_archive import LIST, ClassArchive
from infra.stack.processes.keeper import Keeper

# Replaces a `java` that makes an archive, or cannot: what this module does with either is tested here, and the
# real one by every test that starts a broker.
MAKES = """#!{python}
import sys
[new] = [word.partition("=")[2] for word in sys.argv if word.startswith("-XX:SharedArchiveFile=")]
open(new, "w").write("archive")
"""
CANNOT = "#!{python}\nimport sys\nsys.exit(1)\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A broker's directory after a start that noted its classes, the last one by half."""
    (tmp_path / LIST).write_text("java/lang/Object id: 0\njava/la")
    return tmp_path


def archive(directory: Path, java_does: str) -> ClassArchive:
    home = directory / "home"
    home.mkdir(exist_ok=True)
    java = directory / "java"
    java.write_text(java_does.format(python=sys.executable))
    java.chmod(0o755)
    return ClassArchive(home, java, ("-Xmx1g",), directory)


def test_first_start_notes_second_makes_third_uses(directory: Path) -> None:
    classes = archive(directory, MAKES)
    assert classes.launch_options(Keeper()) == [f"-XX:DumpLoadedClassList={directory / LIST}"]
    classes.note_classes()
    made = classes.launch_options(Keeper())
    assert [option.partition("=")[0] for option in made] == ["-XX:SharedArchiveFile"]
    assert Path(made[0].partition("=")[2]).read_text() == "archive"
    assert classes.launch_options(Keeper()) == made


def test_a_line_half_written_is_left_out(directory: Path) -> None:
    archive(directory, MAKES).note_classes()
    [noted] = (directory / "home").glob("*.lst")
    assert noted.read_text() == "java/lang/Object id: 0\n"


def test_a_java_that_cannot_is_asked_once(directory: Path) -> None:
    classes = archive(directory, CANNOT)
    classes.note_classes()
    assert classes.launch_options(Keeper()) == []
    (directory / "java").write_text("not even a program")
    assert classes.launch_options(Keeper()) == []


def test_who_comes_while_it_is_made_starts_without(directory: Path) -> None:
    classes = archive(directory, MAKES)
    classes.note_classes()
    [noted] = (directory / "home").glob("*.lst")
    with noted.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert classes.launch_options(Keeper()) == []
    assert classes.launch_options(Keeper()) != []
