"""Reads repositories until its input ends; see tests/readers/__init__.py.

`python -m tests.readers.reader HOW FILE`: HOW is http, query, or a wrong way: ignoring (it reads the cursors and does
not use them) or late (it chooses the home, waits for its turn, and only then reads the cursors).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from consumers.routing.lookup import Database, Reading, homes
from consumers.routing.placement import Placement, normalised

Work = Mapping[str, Any]
Choice = tuple[float, Iterable[str]]
"""When the cursors in use were requested, and the homes in their order."""

_WAITS_SECONDS: Final = 0.5


class Cursors:
    """The cursors, queried again once they are older than allowed."""

    def __init__(self, work: Work) -> None:
        self._database = Database(work["dsn"])
        self._refresh_seconds: float = work["refresh_seconds"]
        self._latest = Reading(0.0)

    def latest(self, *, from_scratch: bool = False) -> Reading:
        if from_scratch or time.time() - self._latest.asked_at >= self._refresh_seconds:
            at = time.time()
            self._latest = Reading(at, self._database.ask())
        return self._latest

    def close(self) -> None:
        self._database.close()


def by_http(work: Work) -> Callable[[str], Choice]:
    """Ask `headrace route --serve`, whose cursors have a maximum age."""

    def choose(name: str) -> Choice:
        asked = time.time() - 2 * work["refresh_seconds"]
        with urllib.request.urlopen(f"{work['url']}/homes?name={quote(name, safe='')}", timeout=30) as answer:
            return asked, json.load(answer)["homes"]

    return choose


def by_query(work: Work, cursors: Cursors) -> Callable[[str], Choice]:
    """Read the cursors, and compute the homes from them."""
    placement = Placement(tuple(work["nodes"]), work["pins"])

    def choose(name: str) -> Choice:
        reading = cursors.latest()
        return reading.asked_at, homes(placement, name, reading)

    return choose


def ignoring_cursors(work: Work, cursors: Cursors) -> Callable[[str], Choice]:
    """Wrong on purpose: always ask the md5 home first."""
    placement = Placement(tuple(work["nodes"]), work["pins"])
    return lambda name: (cursors.latest().asked_at, homes(placement, name, Reading(0.0)))


def too_late(work: Work, cursors: Cursors) -> Callable[[str], Choice]:
    """Wrong on purpose: read the cursors after the homes were chosen."""
    placement = Placement(tuple(work["nodes"]), work["pins"])
    chosen: dict[str, tuple[str, ...]] = {}

    def choose(name: str) -> Choice:
        if name not in chosen:
            chosen.clear()
            chosen.update({each: homes(placement, each, cursors.latest()) for each in work["names"]})
            time.sleep(_WAITS_SECONDS)
            cursors.latest(from_scratch=True)
        return cursors.latest().asked_at, chosen.pop(name)

    return choose


def read(work: Work, name: str, choose: Callable[[str], Choice]) -> dict[str, Any]:
    """Read a repository as the contract requires: ask the second home only if the first does not have it."""
    asked, nodes = choose(name)
    found: dict[str, Any] = {"name": name, "asked": asked, "began": time.time(), "tried": []}
    for node in nodes:
        found["tried"].append(node)
        place = Path(work["roots"][node], normalised(name), ".git")
        output = subprocess.run(
            ["git", f"--git-dir={place}", "cat-file", "blob", "refs/heads/main:file"], capture_output=True, check=False
        )
        if output.returncode == 0:
            found |= {"value": output.stdout.decode().strip(), "error": ""}
            break
        found |= {"value": "", "error": output.stderr.decode().strip()}
        if os.path.lexists(place / "HEAD"):
            break  # it exists, but cannot be read
    return {**found, "ended": time.time()}


def main(how: str, file: Path) -> None:
    """Read until standard input ends."""
    work: Work = json.loads(file.read_text(encoding="utf-8"))
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    ways = {"query": by_query, "ignoring": ignoring_cursors, "late": too_late}
    with closing(Cursors(work)) as cursors:
        choose = by_http(work) if how == "http" else ways[how](work, cursors)
        while not ended.is_set():
            print(json.dumps(read(work, random.choice(work["names"]), choose)), flush=True)
            time.sleep(work["pause_seconds"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
