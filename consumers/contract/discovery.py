"""Puts together the migrations that were found: valid ones by class, broken ones by their problem and its place.

A file that cannot be used is an entry too, so that it does not keep other migrations from being listed or run.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import field, replace
from types import ModuleType
from typing import Final

from consumers.contract.declarations import Mistake, mistakes
from consumers.contract.migration import API, Migration
from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass

BUILT_IN: Final = "built in"
"""The origin of headrace's own migrations."""


@dataclass(frozen=True)
class Candidate:
    """A class that was found. `stem` is its file's name, `origin` a folder, a distribution, or BUILT_IN."""

    stem: str
    origin: str
    kind: type[Migration]


@dataclass(frozen=True)
class Broken:
    """A migration that cannot run. `name` is its name, or else its file's name; `place` is `file:line`."""

    name: str
    place: str
    problem: str
    remedy: str
    origin: str = BUILT_IN

    def __str__(self) -> str:
        """Return one line: place, problem and remedy."""
        return f"{self.place}: {self.problem}; {self.remedy}"


class BrokenMigration(UsageError):
    """Fix its file. Other migrations are not affected."""


@dataclass()
class Discovered:
    """What was found: name → class of valid migrations, name → their origin, and name → broken migration."""

    migrations: dict[str, type[Migration]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    broken: dict[str, Broken] = field(default_factory=dict)


def discover(found: Iterable[Candidate | Broken]) -> Discovered:
    """Return the valid and the broken ones of `found`.

    Several with one name are all refused, except that a name of headrace's own migrations stays theirs.
    """
    taken: dict[str, Candidate] = {}
    refused: set[str] = set()
    broken: list[Broken] = []
    for each in found:
        if isinstance(each, Broken):
            broken.append(each)
            continue
        name = each.kind.__dict__.get("name", getattr(each.kind, "name", None))
        entry = name if isinstance(name, str) and name else each.stem
        if (wrong := next(mistakes(each.kind), None)) is not None:
            broken.append(_wrong(entry, each, wrong))
        elif (other := taken.setdefault(entry, each)) is not each:
            broken.append(_twice(entry, other, each))
            if other.origin != BUILT_IN or each.origin == BUILT_IN:
                refused.add(entry)
    valid = {name: each for name, each in taken.items() if name not in refused}
    return Discovered(
        {name: each.kind for name, each in valid.items()},
        {name: each.origin for name, each in valid.items()},
        _named(broken, valid),
    )


def _named(broken: Iterable[Broken], valid: Iterable[str]) -> dict[str, Broken]:
    """Return the broken ones by name; one whose name is taken gets its place as part of its name."""
    found: dict[str, Broken] = {}
    for each in broken:
        name = f"{each.name} ({each.place})" if each.name in valid or each.name in found else each.name
        found[name] = replace(each, name=name)
    return found


def in_package(package: ModuleType, origin: str, only: str | None = None) -> Iterator[Candidate | Broken]:
    """Yield what the modules of `package` have, or its module `only`. Imports them; an exception becomes a Broken."""
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if only not in (None, info.name):
            continue
        # From the finder, since a module that fails to import is not in sys.modules.
        file = getattr(info.module_finder, "path", "") and f"{info.module_finder.path}/{info.name}.py"  # type: ignore[union-attr]
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except (Exception, SystemExit) as error:
            yield unimportable(info.name, file, error, origin)
            continue
        yield from in_module(module, info.name, origin)


def in_module(module: ModuleType, stem: str, origin: str) -> Iterator[Candidate | Broken]:
    """Yield the migrations that `module` itself defines, except abstract ones without a name."""
    for _, member in inspect.getmembers(module, inspect.isclass):
        if member.__module__ != module.__name__:
            continue
        if not issubclass(member, Migration):
            if looks_like_one(member):
                yield not_one(stem, member, origin)
        elif not inspect.isabstract(member) or "name" in member.__dict__:
            yield Candidate(stem, origin, member)


def looks_like_one(kind: type) -> bool:
    """Whether a class is probably meant as a migration, though it is not derived from Migration."""
    return any(pair <= vars(kind).keys() for pair in ({"decide", "apply"}, {"name", "tables"}))


def not_one(stem: str, kind: type, origin: str) -> Broken:
    """Return the entry of a class that is not derived from Migration."""
    return Broken(
        stem,
        place_of(kind),
        f"class {kind.__name__} is not derived from Migration",
        f"write: from headrace import Migration, and class {kind.__name__}(Migration)",
        origin,
    )


def unimportable(name: str, file: str, error: BaseException, origin: str, place: str = "") -> Broken:
    """Return the entry of a module whose import raised `error`; `place` is where to look if not in `file`."""
    said = " ".join(str(error).split()) or "no message"
    line: int | None = None
    if isinstance(error, SyntaxError) and error.filename:
        file, line, said = error.filename, error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
    if isinstance(error, ImportError) and error.name == "headrace":
        # Python's message has no more than the name of the file where it looked.
        said = f"{said.partition(' (')[0]}, version {API} of its API"
    return Broken(
        name,
        place if place and line is None else f"{file}:{line or 1}",
        f"cannot be imported: {type(error).__name__}: {said}",
        "fix the file, or install what it imports",
        origin,
    )


def _wrong(name: str, candidate: Candidate, mistake: Mistake) -> Broken:
    kind = candidate.kind
    return Broken(
        name,
        place_of(kind),
        f"class {kind.__name__} {mistake.problem}",
        f"fix it, for example: {mistake.example}",
        candidate.origin,
    )


def _twice(name: str, one: Candidate, other: Candidate) -> Broken:
    return Broken(
        name,
        place_of(other.kind),
        f"class {other.kind.__name__} has the same name, {name}, as class {one.kind.__name__} in {place_of(one.kind)}",
        "rename one of them: the name is the consumer group and the key in the ledger",
        other.origin,
    )


def place_of(kind: type) -> str:
    """Return `file:line` of a migration's class."""
    try:
        return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return kind.__module__
