"""Finds words of a dialect of headrace's own.

It searches strings, docstrings and comments of the source, the documents, and of the tests docstrings, comments and the
names of tests: their other strings are input, or quotes.

    python -m tests.words [ROOT]

Part of `make lint`. Names and prose use the words of PostgreSQL's, Kafka's and GitLab's documents (docs/glossary.md).
tests/words_allowed.toml has the places where such a word is right, with the reason.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[1]
ALLOWED: Final = Path(__file__).with_name("words_allowed.toml")
SOURCE: Final = ("headrace.py", "producers", "consumers", "infra", "schemas")
TESTS: Final = ("tests",)
THIS: Final = ("tests/words.py", "tests/test_words.py")
"""They list the words."""
DOCUMENTS: Final = ("README.md", "docs", ".github", "Makefile", "docker-compose.yml")

WORDS: Final = {
    r"park(s|ed|ing)?": "dead letter",
    r"sift(s|ed|ing)?|what it mentions": "prefilter",
    r"guardian": "slot monitor",
    r"suffer(s|ed|ing)?": "unhealthy, or throttled",
    r"is well": "healthy",
    r"hold(s|ing)? back|held back|let(s)? go of": "retains, releases",
    r"anew": "again, re-snapshot, or from scratch",
    r"go(es|ing)? on|went on|gone on": "continue",
    r"in vain": "timed out",
    r"nobody|somebody|whoever": "name the actor: no process, another session, the operator",
    r"a person('s)?": "an operator",
    r"tells?|told": "send, report, record, log",
    r"stands?|standing": "is, is at, current",
    r"beside": "next to, with, compared with",
    r"members?": "consumer; group member where Kafka's protocol is meant",
    r"right already": "already up to date",
    r"(?-i:(?<!there )(is|are) none)|that of which": "subject, verb, object",
}
PATTERNS: Final = [
    (re.compile(rf"(?<![\w./-])(?:{word})(?![\w/-])", re.IGNORECASE), better) for word, better in WORDS.items()
]
_QUESTION: Final = re.compile(r"(what|where|how|whether|why|when|who)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A word of the dialect in one place; `line` counts from 1."""

    path: str
    line: int
    word: str
    better: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r} ({self.better}): {self.text}"


def search(root: Path, allowed: Path = ALLOWED) -> list[Found]:
    """Return what is found below `root` and not allowed; an entry that allows nothing is found too."""
    rules = tomllib.loads(allowed.read_text(encoding="utf-8"))["allowed"]
    used: set[int] = set()
    found = []
    for each in _all(root):
        permits = [place for place, rule in enumerate(rules) if _permits(rule, each)]
        used.update(permits)
        if not permits:
            found.append(each)
    unused = (rule for place, rule in enumerate(rules) if place not in used)
    name = str(allowed.relative_to(root)) if allowed.is_relative_to(root) else allowed.name
    return found + [Found(name, 1, rule["word"], "nothing to allow: delete it", str(rule)) for rule in unused]


def _permits(rule: dict[str, str], found: Found) -> bool:
    path = rule.get("path", "")
    return found.path.startswith(path) and re.search(rule["word"], found.text, re.IGNORECASE) is not None


def _all(root: Path) -> Iterator[Found]:
    for file in _files(root, SOURCE, {".py", ".toml", ".sql", ".c", ".h"}):
        path = str(file.relative_to(root))
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            yield from _of_python(path, text)
        else:
            yield from _of_lines(path, 1, text)
    for file in _files(root, TESTS, {".py"}):
        if (path := str(file.relative_to(root))) not in THIS:
            yield from _of_tests(path, file.read_text(encoding="utf-8"))
    for file in _files(root, DOCUMENTS, {".md", ".yml", ""}):
        yield from _of_lines(str(file.relative_to(root)), 1, file.read_text(encoding="utf-8"))


def _files(root: Path, below: tuple[str, ...], suffixes: set[str]) -> Iterator[Path]:
    for name in below:
        place = root / name
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        yield from (
            file for file in files if file.is_file() and file.suffix in suffixes and "__pycache__" not in file.parts
        )


def _of_python(path: str, text: str) -> Iterator[Found]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT) or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            yield from _of_lines(path, token.start[0], token.string)
    yield from _of_beginning(path, ast.parse(text))


def _of_tests(path: str, text: str) -> Iterator[Found]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from _of_lines(path, token.start[0], token.string)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str() as docstring)):
                yield from _of_lines(path, node.lineno, docstring)
            case ast.FunctionDef(name=name) if name.startswith("test_"):
                yield from _of_lines(path, node.lineno, name.replace("_", " "))
    yield from _of_beginning(path, tree)


def _of_beginning(path: str, tree: ast.Module) -> Iterator[Found]:
    docstring = ast.get_docstring(tree) or ""
    if _QUESTION.match(docstring):
        first = docstring.split("\n", 1)[0]
        yield Found(path, 1, first.split()[0], "say what the module does: a verb or a noun first", first)


def _of_lines(path: str, start: int, text: str) -> Iterator[Found]:
    for number, line in enumerate(text.split("\n"), start):
        for word, better in PATTERNS:
            if (match := word.search(line)) is not None:
                yield Found(path, number, match.group(), better, line.strip())


def main() -> None:
    """Print what is found; exit with 1 if anything is."""
    found = search(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT)
    for each in found:
        print(each)
    print(f"{len(found)} words of a dialect" if found else "words: no dialect")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
