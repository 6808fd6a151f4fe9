"""Finds the migrations in a package: valid ones by class, broken ones by their problem and its place.

A file that cannot be used is an entry too, so that it does not keep other migrations from being listed or run.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

from consumers.contract.declarations import Mistake, mistakes
from consumers.contract.migration import Migration
from schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class Broken:
    """A migration that cannot run. `name` is its name, or else its file's name; `place` is `file:line`."""

    name: str
    place: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Return one line: place, problem and remedy."""
        return f"{self.place}: {self.problem}; {self.remedy}"


class BrokenMigration(UsageError):
    """Fix its file. Other migrations are not affected."""


@dataclass(slots=True)
class Discovered:
    """The contents of a package: name → class of valid migrations, and name → broken migration."""

    migrations: dict[str, type[Migration]] = field(default_factory=dict)
    broken: dict[str, Broken] = field(default_factory=dict)


def discover(package: ModuleType) -> Discovered:
    """Return every migration in the modules of `package`. Imports them; an exception becomes an entry in `broken`."""
    found = Discovered()
    taken: dict[str, type[Migration]] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        # From the finder, since a module that fails to import is not in sys.modules.
        file = getattr(info.module_finder, "path", "") and f"{info.module_finder.path}/{info.name}.py"  # type: ignore[union-attr]
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except (Exception, SystemExit) as error:
            found.broken[info.name] = _unimportable(info.name, file, error)
            continue
        for kind in _declared_in(module):
            name = kind.__dict__.get("name", getattr(kind, "name", None))
            entry = name if isinstance(name, str) and name else info.name
            if wrong := next(mistakes(kind), None):
                found.broken.setdefault(entry, _wrong(entry, kind, wrong))
            elif other := taken.get(entry):
                found.broken[entry] = _twice(entry, other, kind)
            taken.setdefault(entry, kind)
    found.migrations = {name: kind for name, kind in taken.items() if name not in found.broken}
    return found


def _declared_in(module: ModuleType) -> Iterator[type[Migration]]:
    """Yield the migration classes that `module` itself defines, except abstract ones without a name."""
    for _, member in inspect.getmembers(module, inspect.isclass):
        if not issubclass(member, Migration) or member.__module__ != module.__name__:
            continue
        if not inspect.isabstract(member) or "name" in member.__dict__:
            yield member


def _unimportable(name: str, file: str, error: BaseException) -> Broken:
    said = " ".join(str(error).split()) or "no message"
    line: int | None = None
    if isinstance(error, SyntaxError) and error.filename:
        file, line, said = error.filename, error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
    return Broken(
        name,
        f"{file}:{line or 1}",
        f"cannot be imported: {type(error).__name__}: {said}",
        "fix the file, or install what it imports",
    )


def _wrong(name: str, kind: type[Migration], mistake: Mistake) -> Broken:
    return Broken(
        name, place_of(kind), f"class {kind.__name__} {mistake.problem}", f"fix it, for example: {mistake.example}"
    )


def _twice(name: str, one: type[Migration], other: type[Migration]) -> Broken:
    return Broken(
        name,
        place_of(other),
        f"class {other.__name__} has the same name, {name}, as class {one.__name__} in {place_of(one)}",
        "rename one of them: the name is the consumer group and the key in the ledger",
    )


def place_of(kind: type[Migration]) -> str:
    """Return `file:line` of a migration's class."""
    try:
        return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return kind.__module__
