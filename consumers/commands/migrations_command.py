"""The command `headrace migrations`."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from infra.cli.options import Config, Json
from schemas.errors import printable

if TYPE_CHECKING:
    from consumers.contract.migration import Migration
    from infra.settings.model import Settings


def migrations(as_json: Json = False, config: Config = None) -> None:
    """List the migrations, and what each one does.

        headrace migrations

    Shows for each one where it is from (built in, a folder of plugin_paths, or an installed package with its version),
    whether it is enabled, and the first line of its docstring; for a broken one the file, the line and the mistake. No
    server is needed.
    """
    from infra.settings.file import load_settings

    found = document(load_settings(config))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        width = shutil.get_terminal_size().columns
        print("\n".join(_lines(found, width)))


def document(settings: Settings) -> dict[str, Any]:
    """Return the document of `migrations --json`."""
    from consumers.operations import catalog

    broken = catalog.broken(settings)
    valid = {name: kind for name, kind in sorted(catalog.migrations(settings).items()) if name not in broken}
    return {
        "migrations": [
            {
                "name": name,
                "origin": catalog.origins(settings)[name],
                "enabled": settings.migration(name).enabled,
                "gitlab_schema": kind.gitlab_schema,
                "tables": list(kind.tables),
                "version": kind.version,
                "description": described(kind),
            }
            for name, kind in valid.items()
        ],
        "broken": [
            {
                "name": name,
                "origin": entry.origin,
                "place": entry.place,
                "problem": entry.problem,
                "remedy": entry.remedy,
            }
            for name, entry in sorted(broken.items())
        ],
    }


def described(kind: type[Migration]) -> str:
    """Return the first line of the class's own docstring, or an empty string."""
    lines = (vars(kind).get("__doc__") or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def _lines(found: Mapping[str, Any], width: int) -> Iterator[str]:
    for each in found["migrations"]:
        state = "enabled" if each["enabled"] else "disabled"
        yield from _folded(f"{each['name']}: {state}, {each['origin']}", width)
        yield from _folded(each["description"], width, "  ")
    for each in found["broken"]:
        yield from _folded(f"{each['name']}: broken, {each['origin']}", width)
        yield from _folded(f"{each['place']}: {each['problem']}; {each['remedy']}", width, "  ")


def _folded(text: str, width: int, indent: str = "") -> list[str]:
    # A place that is wider than the terminal stays whole, to be copied.
    return textwrap.wrap(
        printable(text),
        width,
        initial_indent=indent,
        subsequent_indent=indent or "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
