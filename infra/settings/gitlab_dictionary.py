"""Reads the table → gitlab schema dictionary that GitLab ships: the folder `db/docs`, or the older single file.

Only YAML's events are read, and of these only text at the top level. No object is constructed, so neither a Ruby tag
nor an alias has an effect, and neither depth nor repetition costs memory. An error has the file and the line, never the
text, since a path may lead to a file that is not meant to be shown.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.settings.mistakes import close_to
from infra.settings.model import PATTERN_WORDS, DatabaseSettings
from infra.settings.section import NAME_PATTERN
from schemas.errors import SettingsError
from schemas.gitlab_schemas import KNOWN
from schemas.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import yaml

LIMIT: Final = 256 * 1024
"""Bytes of the largest file that is read; the largest of GitLab's has about 22,000."""
DEPTH: Final = 50
"""How deeply a file may be nested; GitLab's are at most four levels deep."""

_SUFFIXES: Final = (".yml", ".yaml")
_NAMES: Final = ("table_name", "view_name")
_LABEL: Final = "gitlab_schema"
_WHERE: Final = "name the folder db/docs of GitLab's source, or its lib/gitlab/database/gitlab_schemas.yml"
_PARTITIONS: Final = ("gitlab_partitions_dynamic", "gitlab_partitions_static")
"""The schemas where GitLab puts partitions, under names that are not in the dictionary."""


@dataclass(frozen=True)
class Place:
    """A file, and a line of it, counted from 1; without a line, all of it."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        """Return the place as errors name it."""
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"

    def error(self, problem: str, remedy: str = _WHERE) -> SettingsError:
        """Return the error about this place."""
        return SettingsError(f"gitlab_dictionary {self}: {problem}", remedy=remedy)


@dataclass()
class _Entries:
    """Table or view, without a schema → gitlab schema; of each entry its place."""

    labels: dict[str, str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def add(self, name: str, label: str, place: Place) -> None:
        if self.labels.setdefault(name, label) != label:
            raise place.error(
                f"{name} has another gitlab schema in {self.places[name]}", "correct one, or remove one of them"
            )
        self.places.setdefault(name, place)


@dataclass(frozen=True)
class GitlabDictionary:
    """What GitLab's files say: table or view, without a schema → gitlab schema.

    A table that `current` lacks may be in `deleted`: a database that is older than the files still has it.
    """

    current: Mapping[str, str]
    deleted: Mapping[str, str]

    @property
    def gitlab_schemas(self) -> frozenset[str]:
        """Every gitlab schema that the files name."""
        return frozenset(self.current.values()) | frozenset(self.deleted.values())

    def gitlab_schema(self, table: str) -> str | None:
        """Return the gitlab schema of `schema.table`, None if the files do not have it.

        By GitLab's own rule, a partition has the gitlab schema of the table with its name less the number: the
        partition ci_builds_101 that of ci_builds, or of p_ci_builds.
        """
        schema, _, name = table.partition(".")
        if schema == "public":
            return self._of(name)
        if schema in _PARTITIONS:
            root = re.sub(r"_[0-9]+$", "", name)
            return self._of(name) or self._of(root) or self._of(f"p_{root}")
        return None

    def _of(self, name: str) -> str | None:
        return self.current.get(name) or self.deleted.get(name)


@cache
def read_dictionary(path: Path) -> GitlabDictionary:
    """Read GitLab's dictionary from a folder or a file, once in a process.

    Symbolic links are followed. Raises SettingsError with the file, the line and the remedy.
    """
    current, deleted = _Entries(), _Entries()
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise Place(path).error(_cannot(error)) from None
    if not stat.S_ISDIR(kind):
        for name, label, place in _of_schemas_file(path):
            current.add(name, label, place)
    else:
        files = _files(path)
        if not files:
            within = path / "db" / "docs"
            remedy = f"name {within}" if within.is_dir() else _WHERE
            raise Place(path).error("the folder has no YAML file", remedy)
        for file in (*files, *_files(path / "views")):
            current.add(*_of_table_file(file))
        for file in (*_files(path / "deleted_tables"), *_files(path / "deleted_views")):
            deleted.add(*_of_table_file(file))
    return GitlabDictionary(current.labels, deleted.labels)


def require_known(database: str, section: DatabaseSettings) -> None:
    """Raise SettingsError for a gitlab schema in a section with a dictionary that neither it nor headrace knows.

    Reads the dictionary only if headrace does not know the gitlab schema: most commands do not need it.
    """
    path, own = section.gitlab_dictionary, set(section.gitlab_schemas)
    mentioned = own | set(section.table_schemas.values())
    if path is None or not (unknown := mentioned - KNOWN - (own & set(section.table_schemas.values()))):
        return
    known = read_dictionary(path).gitlab_schemas
    for label in sorted(unknown - known):
        raise SettingsError(
            f"databases.{database} mentions gitlab schema {label}, which neither headrace nor gitlab_dictionary {path}"
            f" knows{close_to(label, known | KNOWN)}",
            remedy="correct it; one of your own must be in gitlab_schemas and label a table under table_schemas",
        )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Place(folder).error(_cannot(error)) from None


def _cannot(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"


def _of_table_file(path: Path) -> tuple[str, str, Place]:
    """Return the table or view of one file of db/docs, its gitlab schema, and the place that says so."""
    wanted: dict[str, tuple[str | None, Place]] = {}
    for key, value, place in _top_level(path):
        if key in (*_NAMES, _LABEL):
            if key in wanted:
                raise place.error(f"{key} is there twice", "remove one of them")
            wanted[key] = value, place
    names = [key for key in _NAMES if key in wanted]
    if not names:
        raise Place(path).error("it has neither table_name nor view_name")
    if _LABEL not in wanted:
        raise Place(path).error(
            "it has no gitlab_schema",
            "add it; an older GitLab has them all in lib/gitlab/database/gitlab_schemas.yml: then name that file",
        )
    name, place = wanted[names[0]]
    if not name:
        raise place.error(f"{names[0]} must be the name of a table", f"write {names[0]}: and a name")
    label, place = wanted[_LABEL]
    return name, _label(label, _LABEL, place), place


def _of_schemas_file(path: Path) -> Iterator[tuple[str, str, Place]]:
    """Yield the tables of the single file, each with its gitlab schema and its place."""
    entries = list(_top_level(path))
    for key, _, place in entries:
        if key in (*_NAMES, _LABEL):
            raise place.error(
                "this is the file of one table", "name the folder that has the files of all tables, db/docs"
            )
    if not entries:
        raise Place(path).error("it has no table")
    for name, value, place in entries:
        if not name:
            raise place.error("a table without a name", "remove the line, or name the table")
        yield name, _label(value, "the value", place), place


def _label(value: str | None, what: str, place: Place) -> str:
    label = (value or "").removeprefix(":")  # a symbol, as Ruby writes it
    if not re.fullmatch(NAME_PATTERN, label):
        raise place.error(
            f"{what} must be a gitlab schema, such as gitlab_main or :gitlab_main ({PATTERN_WORDS[NAME_PATTERN]})",
            "correct that line",
        )
    return label


def _top_level(path: Path) -> Iterator[tuple[str, str | None, Place]]:
    """Yield each key of the file's mapping with its value if that is plain text, else None, and its place."""
    import yaml  # noqa: PLC0415 - every command would load it, and most settings name no dictionary

    text = _text(path)
    try:
        yield from _pairs(path, yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = mark.line + 1 if mark else None if position is None else text.count("\n", 0, position) + 1
        raise Place(path, line).error("it is not YAML", "correct that line, or copy the file again") from None


def _pairs(path: Path, events: Iterator[Any]) -> Iterator[tuple[str, str | None, Place]]:
    import yaml  # noqa: PLC0415 - as above

    depth, documents = 0, 0
    key: str | None = None
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise Place(path, line).error("a second YAML document starts there", "remove it")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if not isinstance(event, yaml.NodeEvent):
            continue
        if depth == 0 and not isinstance(event, yaml.MappingStartEvent):
            raise Place(path, line).error("it is not a mapping of keys to values")
        if depth == 1:
            text = event.value if isinstance(event, yaml.ScalarEvent) and _is_plain(event) else None
            if key is not None:
                yield key, text, Place(path, line)
                key = None
            elif text is None:
                raise Place(path, line).error(
                    "a key must be plain text, without an alias or a tag", "correct that line"
                )
            else:
                key = text
        depth += isinstance(event, yaml.CollectionStartEvent)
        if depth > DEPTH:
            raise Place(path, line).error(f"it is nested more than {DEPTH} levels deep")


def _is_plain(event: yaml.ScalarEvent) -> bool:
    """Whether text has no tag of its own: a tag may name a class to create, and none is created."""
    return event.tag in (None, "!", "tag:yaml.org,2002:str")


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Place(path).error("it is not a regular file")
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise Place(path).error(_cannot(error)) from None
    if len(data) > LIMIT:
        raise Place(path).error(f"it is larger than {LIMIT // 1024} KiB, which no file of the dictionary is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Place(path, data.count(b"\n", 0, error.start) + 1).error("it is not UTF-8", "save it as UTF-8") from None
