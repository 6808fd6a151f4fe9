"""The documents mention only what exists: commands with their options, targets of make, settings, metrics, files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.operations import catalog
from infra.settings.description.settings_schema import json_schema
from infra.settings.model import Settings
from tests.command_tree import command_of, paths
from tests.docs.blocks import CHECKOUT, COMMANDS, blocks, name, pages, without_blocks
from tests.docs.session import commands
from tests.reference.metrics_page import names as metric_names

KNOWN = set(paths())
NOT_COMMANDS = {"main", "COMMAND"}
"""`headrace main` is the name of a session in PostgreSQL; COMMAND is any of them."""
NOT_METRICS = {
    "headrace_api",
    "headrace_contract",
    "headrace_ci",
    "headrace_main",
    "headrace_producer",
    "headrace_stack",
}
"""An attribute, fixtures, and names of slots and roles."""
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_KEY = re.compile(
    r"\[?(kafka|registry|metrics|web|traces|databases|virtual_storages|gitserver|migrations)\.[\w.<>]+\]?"
)
"""Not those of `log`, whose keys look like Kafka's."""
_PATH = re.compile(r"(?:docs|tests|infra|consumers|producers|schemas)/[\w./-]+")


def mentioned(page: Path) -> Iterator[str]:
    """Yield the code of a page's prose, each on one line."""
    text = re.sub(r"<!--.*?-->", "", without_blocks(page), flags=re.DOTALL)
    for code in _CODE.findall(text):
        yield " ".join(code.split())


def lines(page: Path) -> Iterator[str]:
    """Yield the commands of a page: of its prose, and of its blocks."""
    yield from mentioned(page)
    for block in blocks(page):
        if block.language in COMMANDS:
            yield from (part.strip() for one in commands(block) for part in one.text.partition(" #")[0].split("|"))


def mistake(line: str) -> str | None:
    """Return what is wrong with a `headrace …` that a page mentions; a name in capitals is any."""
    words = re.sub(r"[\[\]…]|\\\|", " ", line.partition(" > ")[0].partition(" < ")[0]).split()[1:]
    if not words or words[0] in NOT_COMMANDS:
        return None
    path = tuple(words[: 2 if tuple(words[:2]) in KNOWN else 1])
    options = {"--help", "--verbose", "--version"}
    if not words[0].startswith("-"):
        if path not in KNOWN:
            return f"there is no command {words[0]}"
        command = command_of(path)
        options |= {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        if len(path) == 1 and hasattr(command, "commands") and words[1:] and not words[1].startswith("-"):
            return f"there is no command {' '.join(words[:2])}"
    unknown = [
        word for word in words if word.startswith("-") and word.partition("=")[0] not in options and word != "--"
    ]
    return f"{' '.join(path)} has no {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = {line: mistake(line) for line in lines(page) if line.startswith("headrace ")}
    assert {line: said for line, said in wrong.items() if said} == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("headrace stats", "there is no command stats"),
        ("headrace schema remove NAME", "there is no command schema remove"),
        ("headrace verify NAME --row", "verify has no --row"),
        ("headrace verify NAME --rows [--repair]", None),
        ("headrace dead-letters retry NAME [EVENT]…", None),
        ("headrace --version", None),
    ],
)
def test_mention_of_what_does_not_exist_is_found(line: str, said: str | None) -> None:
    assert mistake(line) == said


@pytest.mark.parametrize("page", pages(), ids=name)
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    for line in lines(page):
        for words in re.findall(r"^make ((?:[a-z]+|[A-Z]+=\S*)(?: .*)?)$", line):
            for word in words.partition(" #")[0].split():
                target, equals, _ = word.partition("=")
                known = rf"^{target} \?=|\$\({target}\)" if equals else rf"^{target}:"
                assert re.search(known, makefile, re.MULTILINE), line


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    options = {key: kind.options_type for key, kind in catalog.migrations(Settings.model_construct()).items()}
    return json_schema(options, complete=True)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_settings_exist(page: Path, schema: dict[str, Any]) -> None:
    keys = [code.strip("[]").split(".") for code in mentioned(page) if _KEY.fullmatch(code)]
    assert [".".join(key) for key in keys if not has(schema, key)] == []


@pytest.mark.parametrize(
    ("key", "exists"),
    [
        ("databases.NAME.snapshot.health", True),
        ("databases.<name>.tabels", False),
        ("migrations.NAME.max_rate", True),
        ("migrations.NAME.maxrate", False),
        ("migrations.skip_resets.clear_shipped_columns", True),
        ("migrations.skip_resets.direction", False),
        ("registry.oauth.scope", True),
        ("kafka.options", True),
        ("kafka.nonsense", False),
    ],
)
def test_key_that_no_section_has_is_found(key: str, exists: bool, schema: dict[str, Any]) -> None:
    assert has(schema, key.split(".")) is exists


def has(schema: dict[str, Any], key: list[str]) -> bool:
    """Whether the settings have a key; a placeholder for a migration has the keys of all."""
    section, *rest = key
    at = schema["properties"][section]
    if section == "migrations" and rest[0] not in at["properties"]:
        return any(_is_below(schema, each, rest[1:]) for each in at["properties"].values())
    return _is_below(schema, at, rest)


def _is_below(schema: dict[str, Any], at: Any, words: list[str]) -> bool:
    while "$ref" in at or "allOf" in at:
        at = schema["definitions"][(at.get("$ref") or at["allOf"][0]["$ref"]).removeprefix("#/definitions/")]
    if not words:
        return True
    named, patterns = at.get("properties", {}), list(at.get("patternProperties", {}).values())
    below = [named[words[0]]] if words[0] in named else patterns
    if not below:
        return at.get("type") == "object" and not named  # a table with any keys
    return any(_is_below(schema, each, words[1:]) for each in below)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_metrics_exist(page: Path) -> None:
    used = {found for code in mentioned(page) for found in re.findall(r"\bheadrace_[a-z_]*[a-z]\b", code)}
    assert {re.sub("_(bucket|sum|count)$", "", each) for each in used} - metric_names() - NOT_METRICS == set()


@pytest.mark.parametrize("page", pages(), ids=name)
def test_files_exist(page: Path) -> None:
    named = [code.rstrip("/") for code in mentioned(page) if _PATH.fullmatch(code)]
    assert [each for each in named if not (CHECKOUT / each).exists()] == []
