"""Finds migrations outside headrace: in the folders of `plugin_paths`, and by entry points of installed packages.

Both are code, which runs with all rights of the process. So a folder or file that every user of the machine could have
written is refused; what may be installed is up to the environment's administrator.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import stat
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Final

from consumers.contract.discovery import Broken, Candidate, in_module, in_package, not_one, unimportable
from consumers.contract.migration import Migration

GROUP: Final = "headrace.migrations"
"""The group of entry points; each names a class, a module or a package of modules."""


def in_folder(folder: Path) -> Iterator[Candidate | Broken]:
    """Yield what the Python files of `folder` have; subfolders, tests, cases and names with `_` first are left out.

    A file may import others of its folder by their names.
    """
    origin = str(folder)
    try:
        folder = folder.resolve(strict=True)
        files = [file for file in sorted(folder.glob("*.py")) if _is_migration(file)]
        refused = writable_by_all(folder)
    except OSError as error:
        problem = f"plugin_paths has a folder that cannot be read: {error.strerror}"
        yield Broken(folder.name, origin, problem, "create it, or correct plugin_paths in the settings", origin)
        return
    if not folder.is_dir() or (refused and refused not in files):
        problem = f"every user may write {refused}" if refused else "plugin_paths has a file, not a folder"
        remedy = f"chmod o-w {refused}" if refused else "name its folder in plugin_paths"
        yield Broken(folder.name, origin, problem, remedy, origin)
        return
    if str(folder) not in sys.path:
        # Last, so that no installed module is hidden.
        sys.path.append(str(folder))
    for file in files:
        if _all_may_write(file):
            yield Broken(file.stem, f"{file}:1", "every user may write this file", f"chmod o-w {file}", origin)
        else:
            yield from _in_file(file, origin)


@contextlib.contextmanager
def _output_apart() -> Iterator[None]:
    """Send what a module prints while it is imported to standard error: standard output may be JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _is_migration(file: Path) -> bool:
    stem = file.stem
    return not (stem.startswith((".", "_", "test_")) or stem.endswith(("_test", "_case")) or stem == "conftest")


def _in_file(file: Path, origin: str) -> Iterator[Candidate | Broken]:
    # A name of its own, since two folders may have files of one name, and the file may be called like a package.
    name = f"headrace_plugins.{sha256(str(file.parent).encode()).hexdigest()[:12]}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _output_apart():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        yield unimportable(file.stem, str(file), error, origin)
        return
    yield from in_module(module, file.stem, origin)


def writable_by_all(folder: Path) -> Path | None:
    """Return what every user may write: of the folder, the Python files and folders in it, and those above it.

    A folder above it with the sticky bit, such as /tmp, is no danger: only its owner can rename what is in it.
    """
    for above in folder.parents:
        if _all_may_write(above) and not above.stat().st_mode & stat.S_ISVTX:
            return above
    if _all_may_write(folder):
        return folder
    # Migrations of the folder last: one of them is refused alone, while others may be imported by any.
    exposed = sorted(filter(_all_may_write, _importable(folder)), key=lambda path: path.parent == folder)
    return exposed[0] if exposed else None


def _importable(folder: Path) -> Iterator[Path]:
    """Yield the Python files and the folders within `folder` that an import may read, its own files as well."""
    for place, folders, files in os.walk(folder):
        # Not a repository's .git, nor a virtual environment.
        folders[:] = [name for name in folders if name.isidentifier() and not Path(place, name, "pyvenv.cfg").exists()]
        yield from (Path(place, name) for name in folders)
        python = (Path(place, name) for name in sorted(files) if name.endswith((".py", ".pyc", ".so")))
        yield from (path for path in python if path.exists())


def _all_may_write(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IWOTH)


def installed() -> Iterator[Candidate | Broken]:
    """Yield what the entry points of the group `headrace.migrations` name."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        distribution = point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution is not None else "an entry point"
        try:
            with _output_apart():
                found = list(_named(point.load(), point, origin))
        except (Exception, SystemExit) as error:
            found = [unimportable(point.name, _file_of(point), error, origin, _declaration(point))]
        yield from found


def _named(named: object, point: EntryPoint, origin: str) -> Iterator[Candidate | Broken]:
    if isinstance(named, ModuleType):
        found = list(in_package(named, origin) if "__path__" in vars(named) else in_module(named, point.name, origin))
        if not found:
            problem = f"entry point {point.name} names {point.value}, which defines no migration"
            yield Broken(
                point.name, _declaration(point), problem, "name its module, or its class as module:Class", origin
            )
        yield from found
    elif inspect.isclass(named) and issubclass(named, Migration):
        yield Candidate(point.name, origin, named)
    elif inspect.isclass(named):
        yield not_one(point.name, named, origin)
    else:
        problem = f"entry point {point.name} names {point.value}, which is not a class but {type(named).__name__}"
        yield Broken(point.name, _declaration(point), problem, "name a class as module:Class, or a module", origin)


def _file_of(point: EntryPoint) -> str:
    """Return the file of the entry point's module, or an empty string if it is not found."""
    try:
        spec = importlib.util.find_spec(point.module)
    except (Exception, SystemExit):
        return ""
    return spec.origin or "" if spec is not None else ""


def _declaration(point: EntryPoint) -> str:
    """Return `file:line` of the entry point in its distribution's metadata."""
    file = next((each for each in (point.dist and point.dist.files) or () if each.name == "entry_points.txt"), None)
    if file is None:
        return point.value
    lines = file.read_text().splitlines()
    line = next((number for number, each in enumerate(lines, 1) if each.endswith(point.value)), 1)
    return f"{file.locate()}:{line}"
