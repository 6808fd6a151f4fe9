"""An application at a fixed rate: `python -m tests.benchmarks.foreground_load DSN_FILE STATEMENTS OUT`, until SIGTERM.

STATEMENTS is JSON: name → its SQL, its `rate` per second, and `keys`, the limit of a random id (0: none). Each has
its own connection. Every execution becomes a line `name due milliseconds` in OUT, measured from when it was due: one
delayed by the previous one has waited too. `due` is in seconds of the monotonic clock.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import psycopg


def work(dsn: str, name: str, statement: dict[str, Any], stop: threading.Event, out: TextIO) -> None:
    """Execute one statement at its rate until stopped."""
    choose = random.Random(name)
    pause, text, keys = 1 / statement["rate"], statement["sql"].encode(), statement["keys"]
    with psycopg.connect(dsn, autocommit=True, application_name=f"application {name}") as connection:
        due = time.monotonic()
        while not stop.is_set():
            wait = due - time.monotonic()
            if wait > 0 and stop.wait(wait):
                return
            connection.execute(text, (choose.randint(1, keys),) if keys else None, prepare=True)
            out.write(f"{name} {due:.6f} {(time.monotonic() - due) * 1000:.3f}\n")
            due += pause


def main() -> None:
    """Run with the command line's arguments."""
    file, statements, out = sys.argv[1:]
    dsn = Path(file).read_text(encoding="utf-8")
    stop, failed = threading.Event(), list[BaseException]()

    def guarded(name: str, statement: dict[str, Any], lines: TextIO) -> None:
        try:
            work(dsn, name, statement, stop, lines)
        except BaseException as error:
            failed.append(error)
            stop.set()

    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    with Path(out).open("w", encoding="utf-8", buffering=1) as lines:
        threads = [threading.Thread(target=guarded, args=(*each, lines)) for each in json.loads(statements).items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        sys.exit(f"a statement of the application failed: {failed[0]}")


if __name__ == "__main__":
    main()
