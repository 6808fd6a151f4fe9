"""Every command of every page is run on real servers, in the page's order, or a comment above it says why not."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from infra.stack import background
from tests.conftest import Database
from tests.docs.blocks import COMMANDS, Block, blocks, every_block, pages
from tests.docs.blocks import name as name_of
from tests.docs.session import Command, Session, commands, has_shape
from tests.docs.worlds import WORLDS, Place, World
from tests.reference.pages import FOLDER, PAGES

GENERATED = {name_of(FOLDER / each) for each in PAGES}
"""Their commands are the examples of --help, with names of the reader's own; test_mentions.py parses them."""
LONG = {"docs/how-to/writing-a-migration.md", "docs/tutorial/first-migration.md"}
RUN = {each.page for each in every_block() if each.is_run} - GENERATED


@pytest.fixture
def place(bootstrap_servers: str, prefix: str, database: Database) -> Iterator[Place]:
    """A directory that root's PostgreSQL user can enter, as it cannot pytest's own."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as made:
        base = Path(made)
        base.chmod(0o711)
        directory = base / "page"
        directory.mkdir()
        yield Place(directory, prefix, bootstrap_servers, database)
        background.bring_down(base / "stack", remove_data=True)


@pytest.mark.parametrize(
    "page", [pytest.param(each, marks=[pytest.mark.long] if each in LONG else []) for each in sorted(RUN)]
)
def test_commands_of_a_page_end_as_it_says(page: str, place: Place) -> None:
    with WORLDS[page](place) as world, Session(place.directory, world.environment) as session:
        for block in blocks(next(each for each in pages() if name_of(each) == page)):
            if block.file:
                (place.directory / block.file).parent.mkdir(exist_ok=True)
                (place.directory / block.file).write_text(block.text, encoding="utf-8")
            elif block.is_run:
                session.run(block)
            elif block.language == "sql" and not (block.run_by or block.not_run):
                execute(world, block)


def execute(world: World, block: Block) -> None:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        try:
            connection.execute(block.text.encode())
        except psycopg.Error as error:
            raise AssertionError(f"{block}: {error}") from error


def test_every_page_with_commands_has_a_world() -> None:
    assert WORLDS.keys() == RUN


def test_no_command_of_headrace_is_left_out() -> None:
    left_out = [each for each in every_block() if each.not_run and each.language in COMMANDS]
    ours = re.compile(r"(^|[|;&(] *)headrace ")
    wrong = [str(each) for each in left_out for one in commands(each) if ours.search(one.text)]
    assert wrong == []


def test_sql_is_executed_or_has_a_reason() -> None:
    loose = {each.page for each in every_block() if each.language == "sql" and not (each.run_by or each.not_run)}
    assert loose - WORLDS.keys() == set()


def block(text: str, language: str = "sh") -> Block:
    return Block("page.md", 1, language, text)


def test_commands_end_where_their_lines_do() -> None:
    text = (
        "cat > a <<'END'\nheadrace x\nEND\nheadrace a \\\n  --b\n# a comment\nheadrace verify x   # exit code 1: left\n"
    )
    assert commands(block(text)) == [
        Command("cat > a <<'END'\nheadrace x\nEND"),
        Command("headrace a \\\n  --b"),
        Command("headrace verify x   # exit code 1: left", 1),
    ]
    assert commands(block("$ a\nb\nc\n$ d\n", "console")) == [Command("a", shown="b\nc"), Command("d")]


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("skip_resets  run 12  50,000 rows", "skip_resets run 1 27,700 rows", True),
        ("skip_resets is paused", "skip_resets is resumed", False),
        ("one\ntwo\nthree", "one … three", True),
        ('{"a": [1, 2], "b": "x"}', '{"a": [7], "b": "y"}', True),
        ('{"a": [1, 2], "b": "x"}', '{"a": [7], "b": null}', False),
        ("anything", "", True),
    ],
)
def test_output_is_compared_by_its_shape(printed: str, shown: str, same: bool) -> None:
    assert has_shape(printed, shown) is same


def test_command_that_ends_otherwise_fails_the_page(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    with Session(tmp_path / "page", {}) as session:
        session.run(block("export NAME=value\n"))
        session.run(block("test $NAME = value\nmkdir in && cd in\n"))
        session.run(block("test $(basename $PWD) = in\nfalse   # exit code 1: as documented\n"))
        for wrong in ("false\n", "true   # exit code 1: as documented\n"):
            with pytest.raises(AssertionError, match=r"page\.md:1: .*: exit code"):
                session.run(block(wrong))
        with pytest.raises(AssertionError, match="exit code 0"):
            session.run(block("$ echo other\nshown\n", "console"))
